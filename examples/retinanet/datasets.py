# Owns the data sets by name: what is trained on, what is held out, in grey values of about zero mean and unit variance.
# Must not know anchors, models or losses.

from dataclasses import dataclass

import torch

from .data import load_nuclei
from .scenes import Scene, scene_of, split_columns, window
from .trees import load_trees

NUCLEI_COLUMN = 320
TREES_ROW, TREES_COLUMN = 1900, 800  # hold out what lies below in the large photograph, to the right in the small one
# The evaluator looks at 100 detections per image, so a hold-out with more objects than some 50 is cut into tiles of
# this side.
TILE = 640


@dataclass(frozen=True)
class Dataset:
    name: str
    train: list  # of scenes.Scene
    hold_out: list
    num_classes: int = 1

    @property
    def channels(self):
        return len(self.train[0].image)


def load(name, cache):
    return LOADERS[name](cache)


def nuclei(cache):
    train, hold_out = split_columns(scene_of(load_nuclei(cache)), NUCLEI_COLUMN)
    return Dataset("nuclei", [train], [hold_out])


def trees(cache):
    large, small = (coloured_scene(photograph) for photograph in load_trees(cache))
    (_, height, width), (_, low, wide) = large.image.shape, small.image.shape
    train = [window(large, 0, 0, width, TREES_ROW), window(small, 0, 0, TREES_COLUMN, low)]
    hold_out = [window(large, 0, TREES_ROW, width, height), window(small, TREES_COLUMN, 0, wide, low)]
    train, hold_out = normalised(train, hold_out)
    return Dataset("trees", train, [tile for scene in hold_out for tile in tiles(scene, TILE)])


LOADERS = {"nuclei": nuclei, "trees": trees}


def coloured_scene(photograph):
    """[3, height, width] in 0 to 1."""
    boxes = torch.from_numpy(photograph.boxes)
    image = torch.from_numpy(photograph.image.copy()).permute(2, 0, 1).float() / 255
    return Scene(image, boxes, torch.zeros(len(boxes), dtype=torch.int64), boxes.new_zeros(0, 4))


def normalised(train, hold_out):
    """Every channel to mean 0 and deviation 1 over the training scenes, which alone decide."""
    pixels = torch.cat([scene.image.flatten(1) for scene in train], dim=1)
    mean, std = pixels.mean(1)[:, None, None], pixels.std(1)[:, None, None]
    return [
        [Scene((scene.image - mean) / std, scene.boxes, scene.labels, scene.ignored) for scene in part]
        for part in (train, hold_out)
    ]


def tiles(scene, side):
    """The windows of side x side, smaller at the right and the bottom, that cover the scene; each object belongs to
    one."""
    height, width = scene.image.shape[-2:]
    return [
        window(scene, left, top, min(left + side, width), min(top + side, height))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]

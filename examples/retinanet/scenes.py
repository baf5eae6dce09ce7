# Owns what is seen through a window of a photograph: the split into train and hold-out, flips.
# Must not know where the pixels come from, anchors or the model.
"""One rule for every window, be it the hold-out or a crop: an object belongs to the window that holds the centre of its
box.

Its box is clipped to the window. What sticks in from an object centred outside is neither truth nor background: it goes
to `ignored`, which the matcher turns into ignored anchors and the evaluator into a region where detections do not
count.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Scene:
    image: torch.Tensor  # [channels, height, width]
    boxes: torch.Tensor  # [objects, 4] as x1, y1, x2, y2 in pixels
    labels: torch.Tensor  # [objects] int64 class ids
    ignored: torch.Tensor  # [regions, 4]


def scene_of(photograph):
    boxes = torch.from_numpy(photograph.boxes)
    image = torch.from_numpy(photograph.image.astype("float32"))
    image = image if image.ndim == 3 else image[None]
    return Scene(image, boxes, torch.zeros(len(boxes), dtype=torch.int64), boxes.new_zeros(0, 4))


def window(scene, left, top, right, bottom):
    """The part of `scene` with left <= x < right, top <= y < bottom."""
    centre_x, centre_y = (scene.boxes[:, 0] + scene.boxes[:, 2]) / 2, (scene.boxes[:, 1] + scene.boxes[:, 3]) / 2
    mine = (centre_x >= left) & (centre_x < right) & (centre_y >= top) & (centre_y < bottom)
    others = torch.cat([scene.boxes[~mine], scene.ignored])
    shift = torch.tensor([left, top, left, top], dtype=scene.boxes.dtype)
    size = torch.tensor([right - left, bottom - top] * 2, dtype=scene.boxes.dtype)
    clipped, sticking_in = [(boxes - shift).clamp(min=0).minimum(size) for boxes in (scene.boxes[mine], others)]
    visible = (sticking_in[:, 2] > sticking_in[:, 0]) & (sticking_in[:, 3] > sticking_in[:, 1])
    return Scene(scene.image[:, top:bottom, left:right], clipped, scene.labels[mine], sticking_in[visible])


def split_columns(scene, column):
    """(train, hold-out): the columns before and from `column` on, in grey values scaled by the train part alone."""
    height, width = scene.image.shape[-2:]
    train, hold_out = window(scene, 0, 0, column, height), window(scene, column, 0, width, height)
    # counts of photons: the square root makes their noise about equal in dark and bright places
    root = train.image.sqrt()
    mean, std = root.mean(), root.std()
    return [
        Scene((part.image.sqrt() - mean) / std, part.boxes, part.labels, part.ignored) for part in (train, hold_out)
    ]


def turned(scene, mirror, upside_down, transpose):
    image, (height, width) = scene.image, scene.image.shape[-2:]

    def turn(boxes):
        x1, y1, x2, y2 = boxes.unbind(1)
        if mirror:
            x1, x2 = width - x2, width - x1
        if upside_down:
            y1, y2 = height - y2, height - y1
        return torch.stack([y1, x1, y2, x2] if transpose else [x1, y1, x2, y2], dim=1)

    image = image.flip(-1) if mirror else image
    image = image.flip(-2) if upside_down else image
    image = image.transpose(-1, -2) if transpose else image
    return Scene(image.contiguous(), turn(scene.boxes), scene.labels, turn(scene.ignored))

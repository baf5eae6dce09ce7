# Owns the figures about the data that decide whether a focal loss is needed: how rare a positive is, how much is
# ignored.
# Must not know the model or the loss.

import torch

from .anchors import grid_anchors
from .matcher import BACKGROUND, IGNORED
from .scenes import random_crop
from .training import labelled


def imbalance(scene, crop_size, crops, seed):
    """Averages over random crops of `scene`: boxes and positives per crop, negatives per positive, the ignored
    share."""
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(crop_size, crop_size)
    boxes, targets = 0, []
    for _ in range(crops):
        crop = random_crop(scene, crop_size, generator)
        boxes += len(crop.boxes)
        targets.append(labelled(crop, anchors)[0])
    targets = torch.stack(targets)
    positives, negatives = int((targets >= 0).sum()), int((targets == BACKGROUND).sum())
    return {
        "crops": crops,
        "anchors_per_crop": len(anchors),
        "boxes_per_crop": boxes / crops,
        "positives_per_crop": positives / crops,
        "negatives_per_positive": negatives / max(positives, 1),
        "ignored_share": float((targets == IGNORED).float().mean()),
    }

# Owns: the overlap of matched boxes, which scores of detectors are made of.
# Must not know: losses, libraries.
from __future__ import annotations

import torch
from torch import Tensor


def iou_of_pairs(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of a[i] with b[i], boxes (n, 4) as centre x, centre y, width, height; 0 for two without
    area."""
    centres, sizes = torch.stack([a, b])[..., :2], torch.stack([a, b])[..., 2:]
    low, high = centres - sizes / 2, centres + sizes / 2
    shared = (high.amin(0) - low.amax(0)).clamp(min=0).prod(-1)
    union = (high - low).prod(-1).sum(0) - shared
    return shared / torch.where(union == 0, 1, union)

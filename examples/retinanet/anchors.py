# Owns the anchors: which boxes the network classifies, and in which order.
# Must not know truth, labels or the network beyond the sizes of its feature maps.

import torch

STRIDES = (8, 16, 32)
# In units of the stride. The RetinaNet of the paper uses 4; our objects are 13 to 39 pixels, so the finest level must
# go down to 16.
SIZE = 2.0
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)  # height : width


def anchor_shapes(stride, size=SIZE, scales=SCALES, ratios=RATIOS):
    """[scales * ratios, 4] boxes around the origin; every ratio keeps the area of its scale."""
    side = stride * size * torch.tensor(scales, dtype=torch.float64)
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    width, height = (side[:, None] / root).flatten(), (side[:, None] * root).flatten()
    return (torch.stack([-width, -height, width, height], dim=1) / 2).float()


def grid_anchors(height, width, strides=STRIDES, **shape):
    """[N, 4] anchors of an image of height x width: level, row, column, shape, in the order of the network's outputs.

    A level has ceil(height / stride) x ceil(width / stride) cells, as many as convolutions of stride 2 and padding 1
    leave.
    """
    levels = []
    for stride in strides:
        y = (torch.arange(-(-height // stride)) + 0.5) * stride
        x = (torch.arange(-(-width // stride)) + 0.5) * stride
        y, x = torch.meshgrid(y, x, indexing="ij")
        centres = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)
        levels.append((centres + anchor_shapes(stride, **shape)).reshape(-1, 4))
    return torch.cat(levels)

# Owns the geometry of boxes: overlap, the code a network regresses, non-maximum suppression.
# Must not know labels, anchors' layout or images. Boxes are [n, 4] as x1, y1, x2, y2 in pixels.

import math

import torch

# exp of a wild early prediction would overflow; a box never needs to be more than this many times its anchor.
MAX_LOG_SCALE = math.log(1000 / 16)


def area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def pairwise_iou(a, b):
    """[len(a), len(b)] intersection over union; 0 where the union is empty."""
    corner = torch.maximum(a[:, None, :2], b[None, :, :2])
    size = (torch.minimum(a[:, None, 2:], b[None, :, 2:]) - corner).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    union = area(a)[:, None] + area(b)[None] - intersection
    return torch.where(union > 0, intersection / union, torch.zeros_like(union))


def _centre_and_size(boxes):
    size = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + size / 2, size


def encode(boxes, anchors):
    """The regression target: the centre's shift in units of the anchor, the logarithm of the scale (Girshick et al.
    2014)."""
    centre, size = _centre_and_size(boxes)
    anchor_centre, anchor_size = _centre_and_size(anchors)
    return torch.cat([(centre - anchor_centre) / anchor_size, torch.log(size / anchor_size)], dim=-1)


def decode(code, anchors):
    """The inverse of `encode`."""
    anchor_centre, anchor_size = _centre_and_size(anchors)
    centre = anchor_centre + code[..., :2] * anchor_size
    half = anchor_size * code[..., 2:].clamp(max=MAX_LOG_SCALE).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def suppress(boxes, scores, max_iou):
    """Greedy non-maximum suppression: indices of the boxes kept, best first."""
    order = scores.argsort(descending=True, stable=True)
    overlaps = (pairwise_iou(boxes[order], boxes[order]) > max_iou).tolist()
    kept = []
    for candidate in range(len(order)):
        if not any(overlaps[candidate][better] for better in kept):
            kept.append(candidate)
    return order[kept]

# Owns the way from a network's output to a list of boxes with scores.
# Must not know truth, training or figures.

from dataclasses import dataclass

import torch

from .anchors import grid_anchors
from .boxes import decode, suppress


@dataclass(frozen=True)
class Detections:
    boxes: torch.Tensor  # [n, 4] pixels, clipped to the image, best score first
    scores: torch.Tensor  # [n] in (0, 1)
    labels: torch.Tensor  # [n] int64 class ids


@torch.no_grad()
def detect(model, image, min_score=0.05, max_iou=0.5, candidates=1000, limit=100):
    """Detections in one image [channels, height, width]; suppression is per class, `limit` is per image as in COCO."""
    model.eval()
    height, width = image.shape[-2:]
    logits, code = (output[0] for output in model(image[None]))
    scores = logits.sigmoid().flatten()
    best = scores.topk(min(candidates, len(scores))).indices
    best = best[scores[best] > min_score]
    anchor, label = best // model.num_classes, best % model.num_classes
    boxes = decode(code[anchor], grid_anchors(height, width)[anchor])
    boxes = boxes.clamp(min=0).minimum(boxes.new_tensor([width, height, width, height]))
    # Boxes of different classes are moved apart, so that one suppression serves all classes.
    apart = label[:, None] * float(2 * max(height, width))
    kept = suppress(boxes + apart, scores[best], max_iou)[:limit]
    return Detections(boxes[kept], scores[best][kept], label[kept])

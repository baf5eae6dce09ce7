# Owns the verdict on single detections, for pictures: hit, false alarm, not counted, and which truths were missed.
# Must not know the evaluator; its average precision is the figure, this is only what one looks at.

import torch

from .boxes import area, pairwise_iou

HIT, FALSE_ALARM, NOT_COUNTED = "hit", "false alarm", "not counted"


def judge(scene, found, min_score, min_iou=0.5):
    """([(box, score, verdict)], [missed box]) at the operating point min_score; best score first, each truth is hit
    once."""
    shown = found.scores >= min_score
    boxes, scores, labels = found.boxes[shown], found.scores[shown], found.labels[shown]
    iou = pairwise_iou(boxes, scene.boxes) * (labels[:, None] == scene.labels)
    free = torch.ones(len(scene.boxes), dtype=torch.bool)
    verdicts = []
    for box, score, overlap in zip(boxes, scores.tolist(), iou):
        overlap = overlap * free
        if len(overlap) and overlap.max() >= min_iou:
            free[overlap.argmax()] = False
            verdict = HIT
        else:
            verdict = NOT_COUNTED if _inside(box, scene.ignored) else FALSE_ALARM
        verdicts.append((box, score, verdict))
    return verdicts, list(scene.boxes[free])


def _inside(box, regions):
    """Whether half of the box or more lies in one of the regions, the evaluator's rule for a crowd."""
    size = (torch.minimum(box[2:], regions[:, 2:]) - torch.maximum(box[:2], regions[:, :2])).clamp(min=0)
    return bool((size.prod(dim=1) >= 0.5 * area(box[None])).any())

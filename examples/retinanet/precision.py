# Owns the figures of a trained network on the hold-out: AP50, AP and recall.
# Must not know how it was trained.

from .detection import detect
from .evaluation import average_precision
from .verdicts import HIT, judge

RECALL_SCORE = 0.05  # of all that the detector hands out


def precision(model, dataset):
    """{"ap50", "ap", "recall"}, 0 to 1; recall: truths that some detection of RECALL_SCORE or more overlaps by half."""
    found = [detect(model, scene.image, min_score=RECALL_SCORE) for scene in dataset.hold_out]
    hits = sum(
        verdict == HIT
        for scene, detections in zip(dataset.hold_out, found)
        for *_, verdict in judge(scene, detections, RECALL_SCORE)[0]
    )
    truths = sum(len(scene.boxes) for scene in dataset.hold_out)
    return {**average_precision(dataset.hold_out, found, dataset.num_classes), "recall": hits / max(truths, 1)}

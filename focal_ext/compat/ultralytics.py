# Owns: the classification losses of ultralytics' YOLO and RT-DETR over the core.
# Must not know: ultralytics itself, until patched() or apply() is called.
"""``focal_ext.compat.ultralytics.apply()``: the losses of YOLOv8 to YOLO26 (detection, segmentation, pose, oriented boxes)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from .. import losses
from ._patching import Switch, with_original


def _is_plain(cross_entropy: Any) -> bool:
    return type(cross_entropy) is nn.BCEWithLogitsLoss and (cross_entropy.reduction, cross_entropy.weight, cross_entropy.pos_weight) == ("none", None, None)


@contextlib.contextmanager
def _summed(criterion: Any, logits: Tensor) -> Iterator[None]:
    """While ultralytics' own method runs, its cross entropy of each logit is the sum of all, weighted by classes, which is what it makes
    of them. ``logits`` [B, classes, anchors] are read in place of their copy [B, anchors, classes]: so is the gradient written."""
    own, weights = criterion.bce, criterion.class_weights
    if not _is_plain(own):  # a loss that a user has put there
        yield
        return

    def summed(copied: Tensor, scores: Tensor) -> Tensor:
        weight = None if weights is None else weights.view(-1, 1)
        return losses.sigmoid_focal_loss(logits, scores.movedim(-1, 1), None, 0.0, "sum", weight=weight, class_dim=1)

    criterion.bce, criterion.class_weights = summed, None
    try:
        yield
    finally:
        criterion.bce, criterion.class_weights = own, weights


@with_original
def _assigned(original: Callable[..., Any], self: Any, preds: dict[str, Tensor], batch: dict[str, Any], **assign_kwargs: Any) -> Any:
    with _summed(self, preds["scores"]):
        return original(self, preds, batch, **assign_kwargs)


@with_original
def _oriented(original: Callable[..., Any], self: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> Any:
    with _summed(self, preds["scores"]):
        return original(self, preds, batch)


SWITCH = Switch(
    "ultralytics",
    known="8.4.190",
    places={
        "ultralytics.utils.loss:v8DetectionLoss.get_assigned_targets_and_loss": _assigned,
        "ultralytics.utils.loss:v8OBBLoss.loss": _oriented,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

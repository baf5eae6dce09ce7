# Owns: the classification losses of ultralytics' YOLO and RT-DETR over the core.
# Must not know: ultralytics itself, until patched() or apply() is called.
"""``focal_ext.compat.ultralytics.apply()``: the losses of YOLOv8 to YOLO26 (detection, segmentation, pose, oriented
boxes) and of its RT-DETR."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from ._conventions import without_last_background
from ._patching import Switch, with_original


def _is_plain(cross_entropy: Any) -> bool:
    return type(cross_entropy) is nn.BCEWithLogitsLoss and (
        cross_entropy.reduction,
        cross_entropy.weight,
        cross_entropy.pos_weight,
    ) == ("none", None, None)


@contextlib.contextmanager
def _summed(criterion: Any, logits: Tensor) -> Iterator[None]:
    """While ultralytics' own method runs, its cross entropy of each logit is the sum of all, weighted by classes, which
    is what it makes of them. ``logits`` [B, classes, anchors] are read in place of their copy [B, anchors, classes]: so
    is the gradient written."""
    own, weights, assigner = criterion.bce, criterion.class_weights, criterion.assigner
    if not _is_plain(own):  # a loss that a user has put there
        yield
        return
    seen: list[Any] = []

    def assigned(*args: Any, **options: Any) -> Any:
        seen.append(assigner(*args, **options))
        return seen[-1]

    def summed(copied: Tensor, scores: Tensor) -> Tensor:
        weight = None if weights is None else weights.view(-1, 1)
        # ultralytics' assigners give an anchor one class: its id and score, instead of a score for each class.
        is_single = type(assigner).__module__ == "ultralytics.utils.tal"
        targets = _pair(*seen[-1]) if is_single else scores.movedim(-1, 1)
        return losses.sigmoid_focal_loss(logits, targets, None, 0.0, "sum", weight=weight, class_dim=1)

    criterion.bce, criterion.class_weights, criterion.assigner = summed, None, assigned
    try:
        yield
    finally:
        criterion.bce, criterion.class_weights, criterion.assigner = own, weights, assigner


def _pair(
    labels: Tensor, boxes: Tensor, scores: Tensor, is_assigned: Tensor, boxes_of_anchors: Tensor
) -> tuple[Tensor, Tensor]:
    ids = labels.long().clamp(0, max(scores.shape[-1] - 1, 0))
    return torch.where(is_assigned.bool(), ids, -1), scores.gather(-1, ids[..., None])[..., 0]


@with_original
def _assigned(
    original: Callable[..., Any], self: Any, preds: dict[str, Tensor], batch: dict[str, Any], **assign_kwargs: Any
) -> Any:
    with _summed(self, preds["scores"]):
        return original(self, preds, batch, **assign_kwargs)


@with_original
def _oriented(original: Callable[..., Any], self: Any, preds: dict[str, Tensor], batch: dict[str, Any]) -> Any:
    with _summed(self, preds["scores"]):
        return original(self, preds, batch)


@with_original
def _classes(
    original: Callable[..., Any],
    self: Any,
    pred_scores: Tensor,
    targets: Tensor,
    gt_scores: Tensor,
    num_gts: int,
    postfix: str = "",
) -> dict[str, Tensor]:
    """RT-DETR: varifocal loss of the matched queries' classes and scores, focal loss without boxes, or cross
    entropy."""
    ids, scores, boxes = without_last_background(targets, self.nc), gt_scores.view(targets.shape), max(num_gts, 1)
    if self.fl and num_gts and self.vfl:
        loss = losses.varifocal_loss(
            pred_scores, (ids, scores), self.vfl.alpha, self.vfl.gamma, "sum", normalizer=boxes
        )
    elif self.fl:
        alpha = float(self.fl.alpha)
        loss = losses.sigmoid_focal_loss(
            pred_scores, ids, alpha if alpha > 0 else None, self.fl.gamma, "sum", normalizer=boxes
        )
    else:
        found: dict[str, Tensor] = original(self, pred_scores, targets, gt_scores, num_gts, postfix)
        return found
    return {f"loss_class{postfix}": loss * self.loss_gain["class"]}


SWITCH = Switch(
    "ultralytics",
    known="8.4.190",
    places={
        "ultralytics.utils.loss:v8DetectionLoss.get_assigned_targets_and_loss": _assigned,
        "ultralytics.utils.loss:v8OBBLoss.loss": _oriented,
        "ultralytics.models.utils.loss:DETRLoss._get_loss_class": _classes,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

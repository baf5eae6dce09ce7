# Owns: the classification and mask losses of RF-DETR's own training code over the core.
# Must not know: rfdetr itself, until patched() or apply() is called.
"""``focal_ext.compat.rfdetr.apply()`` before the criterion's first step. For RF-DETR in transformers there is
``focal_ext.compat.transformers``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import losses
from .._arguments import accumulation_dtype
from ._boxes import iou_of_pairs
from ._conventions import as_scalar
from ._patching import Switch, with_original
from .detr import sigmoid_focal_loss


def _pair(
    logits: Tensor, boxes: Tensor, index: tuple[Tensor, ...], labels: Tensor, target_boxes: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The class of the box that each query is matched to, and its IoU with it; -1 where it is matched to none, or to
    padding."""
    ids = torch.full(logits.shape[:-1], -1, dtype=torch.int64, device=logits.device)
    ids[index] = labels if valid is None else torch.where(valid.bool(), labels, -1)
    scores = torch.zeros(ids.shape, dtype=accumulation_dtype(logits.dtype), device=logits.device)
    scores[index] = (
        iou_of_pairs(boxes[index].detach().flatten(0, -2), target_boxes.flatten(0, -2))
        .view(labels.shape)
        .to(scores.dtype)
    )
    return ids, scores


@with_original
def _labels(
    original: Callable[..., dict[str, Tensor]],
    self: Any,
    outputs: dict[str, Any],
    targets: list[dict[str, Tensor]],
    indices: list[tuple[Tensor, Tensor]],
    num_boxes: Tensor,
    log: bool = True,
    matched_targets: Any = None,
) -> dict[str, Tensor]:
    """The IoU-aware loss, rfdetr's default. Its plain focal loss calls sigmoid_focal_loss, which is replaced by
    itself."""
    if not self.ia_bce_loss:
        return original(self, outputs, targets, indices, num_boxes, log, matched_targets)
    logits, valid = outputs["pred_logits"], self._matched_valid_mask(targets, indices)
    index, labels, boxes = self._get_matched_targets(targets, indices) if matched_targets is None else matched_targets
    pair = _pair(logits, outputs["pred_boxes"], index, labels, boxes, valid)
    found = {
        "loss_ce": losses.iou_aware_bce_loss(
            logits, pair, self.focal_alpha, 2.0, "sum", normalizer=as_scalar(num_boxes)
        )
    }
    if log:
        counts = torch.ones_like(labels, dtype=torch.float32) if valid is None else valid
        correct = (logits[index].argmax(-1) == labels).to(counts.dtype)
        found["class_error"] = 100 - 100 * (correct * counts).sum() / counts.sum().clamp(min=1)
    return found


@with_original
def _batched(
    original: Callable[..., tuple[Tensor, ...]],
    logits: Tensor,
    boxes: Tensor,
    batch_indices: Tensor,
    source_indices: Tensor,
    target_labels: Tensor,
    target_boxes: Tensor,
    valid_mask: Tensor,
    target_lengths: Tensor,
    num_boxes: Tensor,
    focal_alpha: float,
) -> tuple[Tensor, ...]:
    """All layers at once, as a compiled model has them: rfdetr's function is given a single class, whose loss is then
    replaced."""
    rest = (target_boxes, valid_mask, target_lengths, num_boxes, focal_alpha)
    found = original(
        logits.detach().amax(-1, keepdim=True),
        boxes,
        batch_indices,
        source_indices,
        torch.zeros_like(target_labels),
        *rest,
    )
    index = (
        torch.arange(len(logits), device=logits.device)[:, None].expand_as(batch_indices),
        batch_indices,
        source_indices,
    )
    pair = _pair(logits, boxes, index, target_labels, target_boxes, valid_mask)
    normalizer = as_scalar(num_boxes)
    return losses.iou_aware_bce_loss(
        logits, pair, focal_alpha, 2.0, "sum", normalizer=normalizer, batch_dims=1
    ), *found[1:]


def _mask_cross_entropy(inputs: Tensor, targets: Tensor, num_masks: Tensor | float) -> Tensor:
    return sigmoid_focal_loss(inputs, targets, num_masks, -1, 0)


SWITCH = Switch(
    "rfdetr",
    known="1.11.2",
    places={
        "rfdetr.models.criterion:SetCriterion.loss_labels": _labels,
        "rfdetr.models.criterion:_batched_detection_loss_tensors": _batched,
        "rfdetr.models.criterion:sigmoid_focal_loss": sigmoid_focal_loss,
        "rfdetr.models.criterion:sigmoid_ce_loss": _mask_cross_entropy,
        "rfdetr.models.criterion:sigmoid_ce_loss_jit": _mask_cross_entropy,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

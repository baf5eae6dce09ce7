# Owns: mmsegmentation's FocalLoss over the core.
# Must not know: mmsegmentation itself, until patched() or apply() is called.
"""``focal_ext.compat.mmseg.apply()``: the losses of every FocalLoss that a config of mmsegmentation names."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import losses
from ._conventions import as_scalar, without_last_background
from ._patching import Switch


def _ids(pred: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """0..C-1, C for no class; of a single class 1 is the class and 0 none. -2 where ignored."""
    ids = target.long()
    ids = torch.where(target == 1, 0, -1) if pred.shape[1] == 1 else without_last_background(ids, pred.shape[1])
    return ids.masked_fill(target == ignore_index, -2)


def _weight(pred: Tensor, weight: Tensor | None, class_weight: list[float] | None) -> Tensor | None:
    """mmseg's weight counts the positions of all images in a row, with or without classes after them: as it broadcasts
    to the logits."""
    factor = None if class_weight is None else pred.new_tensor(class_weight).view(-1, *[1] * (pred.dim() - 2))
    if weight is None:
        return factor
    if weight.shape[0] != math.prod(pred.shape[:1] + pred.shape[2:]):
        raise ValueError(
            f"weight: must have an entry for each of {math.prod(pred.shape[:1] + pred.shape[2:])} positions of all "
            f"images, got {tuple(weight.shape)}"
        )
    of_logits = weight.view(pred.shape[0], *pred.shape[2:], -1).movedim(-1, 1)
    return of_logits if factor is None else of_logits * factor


def _forward(
    self: Any,
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction_override: str | None = None,
    ignore_index: int = 255,
    **kwargs: Any,
) -> Tensor:
    """One-vs-rest focal loss of (B, C, ...) logits, read in place; a mean without avg_factor is over all logits,
    ignored ones too."""
    reduction = reduction_override or self.reduction
    if not self.use_sigmoid:
        raise NotImplementedError("use_sigmoid: must be True, as in mmsegmentation")
    if avg_factor is not None and reduction == "sum":
        raise ValueError('avg_factor: cannot be used with reduction="sum"; mmseg divides only a mean')
    targets = target if target.shape == pred.shape else _ids(pred, target, ignore_index)
    normalizer: float | Tensor | None = None
    if reduction == "mean":
        normalizer = (
            max(pred.numel(), 1) if avg_factor is None else as_scalar(avg_factor) + torch.finfo(torch.float32).eps
        )
    factor, reduction = _weight(pred, weight, self.class_weight), "none" if reduction == "none" else "sum"
    loss: Tensor = self.loss_weight * losses.sigmoid_focal_loss(
        pred, targets, self.alpha, self.gamma, reduction, normalizer=normalizer, weight=factor, class_dim=1
    )
    return loss


SWITCH = Switch(
    "mmseg",
    known="1.2.2",
    places={"mmseg.models.losses.focal_loss:FocalLoss.forward": _forward},
    distribution="mmsegmentation",
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

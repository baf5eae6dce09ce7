# Owns: the focal losses of kornia.losses over the core; which options are left to kornia.
# Must not know: kornia itself, until patched() or apply() is called.
"""``focal_ext.compat.kornia.apply()``: kornia.losses.focal_loss, binary_focal_loss_with_logits and the modules
FocalLoss and BinaryFocalLossWithLogits. reduction="none", soft targets and numbers out of their range are left to
kornia."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import losses
from .._arguments import Alpha
from ._conventions import is_hard
from ._patching import Switch, with_original


def _is_fraction(alpha: Any) -> bool:
    return alpha is None or (isinstance(alpha, (int, float)) and 0 <= alpha <= 1)


def _of_classes(weight: Tensor | None, name: str, pred: Tensor) -> Tensor | None:
    if weight is not None and weight.shape != pred.shape[1:2]:
        raise ValueError(
            f"{name}: must hold one value for each of the {pred.shape[1]} classes, got shape {tuple(weight.shape)}"
        )
    return weight


@with_original
def focal_loss(
    original: Callable[..., Tensor],
    pred: Tensor,
    target: Tensor,
    alpha: float | None,
    gamma: float = 2.0,
    reduction: str = "none",
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """The softmax focal loss of (B, C, *) logits and ids (B, *): class 0 weighs 1 - alpha, a mean is over all logits,
    ignored ones too."""
    if reduction not in ("mean", "sum") or gamma < 0 or not _is_fraction(alpha):
        return original(pred, target, alpha, gamma, reduction, weight, ignore_index)
    factor = _of_classes(weight, "weight", pred)
    if alpha is not None:
        dtype = torch.promote_types(pred.dtype, torch.float32)
        classes = torch.full(pred.shape[1:2], alpha, dtype=dtype, device=pred.device)
        classes[:1] = 1 - alpha
        factor = classes if factor is None else classes * factor
    normalizer = max(pred.numel(), 1) if reduction == "mean" else None
    return losses.softmax_focal_loss(
        pred, target, factor, gamma, "sum", normalizer=normalizer, ignore_index=ignore_index, class_dim=1
    )


@with_original
def binary_focal_loss_with_logits(
    original: Callable[..., Tensor],
    pred: Tensor,
    target: Tensor,
    alpha: float | None = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    pos_weight: Tensor | None = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
) -> Tensor:
    """The sigmoid focal loss of (B, C, *) logits and targets of 0 and 1 of their shape; a mean is over all logits,
    ignored ones too."""
    if reduction not in ("mean", "sum") or gamma < 0 or not _is_fraction(alpha) or not is_hard(target, ignore_index):
        return original(pred, target, alpha, gamma, reduction, pos_weight, weight, ignore_index)
    factor, of_positives = _of_classes(weight, "weight", pred), _of_classes(pos_weight, "pos_weight", pred)
    balance: Alpha = alpha
    if of_positives is not None:
        # Factors a of positives and b of negatives are a + b times alpha = a / (a + b) and 1 - alpha.
        positive, negative = of_positives * (1.0 if alpha is None else alpha), 1.0 if alpha is None else 1.0 - alpha
        total = positive + negative
        balance = torch.where(total == 0, torch.zeros_like(total), positive / total)
        factor = total if factor is None else total * factor
    if factor is not None:
        factor = factor.view(-1, *[1] * (pred.dim() - 2))
    normalizer = max(pred.numel(), 1) if reduction == "mean" else None
    return losses.sigmoid_focal_loss(
        pred,
        target,
        balance,
        gamma,
        "sum",
        normalizer=normalizer,
        weight=factor,
        ignore_index=ignore_index,
        class_dim=1,
    )


SWITCH = Switch(
    "kornia",
    known="0.9.0",
    places={
        "kornia.losses.focal:focal_loss": focal_loss,
        "kornia.losses.focal:binary_focal_loss_with_logits": binary_focal_loss_with_logits,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

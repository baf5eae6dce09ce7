# Owns: the names of mmdet.models.losses: focal_loss, gfocal_loss (quality) and varifocal_loss.
# Must not know: mmdet itself, until patched() or apply() is called.
"""``focal_ext.compat.mmdet.apply()``: the losses of every FocalLoss, QualityFocalLoss, VarifocalLoss and
GaussianFocalLoss that a config names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from ._conventions import as_scalar, check_dense, checked_ids, logits_of, without_last_background
from ._patching import Switch, with_original

REDUCTIONS = ("none", "mean", "sum")


def _divisor(reduction: str, avg_factor: float | Tensor | None, count: int) -> tuple[str, float | Tensor | None]:
    """The core's reduction and normalizer: mmdet's mean is over `count`, or over avg_factor plus the epsilon of
    float32."""
    if avg_factor is not None and reduction == "sum":
        raise ValueError('avg_factor: cannot be used with reduction="sum"; mmdet divides only a mean')
    if reduction != "mean":
        return reduction, None
    return "sum", max(count, 1) if avg_factor is None else as_scalar(avg_factor) + torch.finfo(torch.float32).eps


def _ids(pred: Tensor, target: Tensor) -> Tensor:
    classes = pred.shape[-1]
    convention = f"mmdet labels: 0..{classes - 1} positive, {classes} background, ignored anchors by a weight of 0"
    return without_last_background(checked_ids(pred, target, 0, classes, convention), classes)


def _weight(pred: Tensor, weight: Tensor | None) -> Tensor | None:
    """mmdet's weight of N rows, of N x C logits, or of those in one dimension."""
    if weight is None or weight.shape == pred.shape:
        return weight
    return weight.reshape(-1, 1) if weight.shape[0] == pred.shape[0] else weight.reshape(pred.shape[0], -1)


def sigmoid_focal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    gamma: float = 2.0,
    alpha: float = 0.25,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Equivalent to ``sigmoid_focal_loss`` of mmdet for labels (N,), and to ``py_sigmoid_focal_loss`` for dense targets
    (N, C).

    Labels: 0..C-1 positive, C background. A mean without avg_factor is over all logits.
    """
    targets = target if isinstance(target, Tensor) and target.dim() == pred.dim() else _ids(pred, target)
    reduction, normalizer = _divisor(reduction, avg_factor, pred.numel())
    return losses.sigmoid_focal_loss(
        pred, targets, alpha, gamma, reduction, normalizer=normalizer, weight=_weight(pred, weight)
    )


py_sigmoid_focal_loss = sigmoid_focal_loss


def quality_focal_loss(
    pred: Tensor,
    target: tuple[Tensor, Tensor] | Tensor,
    weight: Tensor | None = None,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
    beta: float = 2.0,
) -> Tensor:
    """Equivalent to mmdet's ``quality_focal_loss`` for a pair (labels, scores), and to ``..._tensor_target`` for dense
    scores (N, C).

    A row's loss is the sum over classes: "none" returns (N,), a mean without avg_factor is over rows.
    """
    pair = target if isinstance(target, Tensor) else (_ids(pred, target[0]), target[1])
    reduction, normalizer = _divisor(reduction, avg_factor, pred.shape[0])
    loss = losses.quality_focal_loss(pred, pair, beta, reduction, normalizer=normalizer, weight=_weight(pred, weight))
    return loss.sum(1) if reduction == "none" else loss


def varifocal_loss(
    pred: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    reduction: str = "mean",
    avg_factor: float | Tensor | None = None,
) -> Tensor:
    """Equivalent to mmdet's ``varifocal_loss`` of dense scores (N, C)."""
    check_dense(pred, target, "mmdet's varifocal loss")
    if not iou_weighted:  # the positives' own factor, their score, is taken out again
        unweighted = torch.where(target > 0, 1 / target, 1)
        weight = unweighted if weight is None else unweighted * weight
    reduction, normalizer = _divisor(reduction, avg_factor, pred.numel())
    return losses.varifocal_loss(pred, target, alpha, gamma, reduction, normalizer=normalizer, weight=weight)


def _forward(
    kind: type[_Loss],
    module: Any,
    pred: Tensor,
    target: Any,
    weight: Tensor | None,
    avg_factor: float | Tensor | None,
    reduction_override: str | None,
) -> Tensor:
    """The loss of a module of ours or of mmdet's, which have the same attributes."""
    if reduction_override not in (None, *REDUCTIONS):
        raise ValueError(f"reduction_override: must be None or one of {REDUCTIONS}, got {reduction_override!r}")
    options = {name: getattr(module, name) for name in kind.options}
    logits = logits_of(pred) if getattr(module, "activated", False) else pred
    loss: Tensor = module.loss_weight * kind.function(
        logits, target, weight, reduction=reduction_override or module.reduction, avg_factor=avg_factor, **options
    )
    return loss


class _Loss(nn.Module):
    """What mmdet's losses share: their function with its options, loss_weight, reduction_override, and `activated`
    predictions."""

    function: Callable[..., Tensor]
    options: tuple[str, ...]

    def __init__(
        self, use_sigmoid: bool, reduction: str, loss_weight: float, activated: bool = False, **options: Any
    ) -> None:
        super().__init__()
        if use_sigmoid is not True:
            raise ValueError(f"use_sigmoid: must be True, as in mmdet, got {use_sigmoid!r}")
        self.use_sigmoid, self.reduction, self.loss_weight, self.activated = (
            use_sigmoid,
            reduction,
            loss_weight,
            activated,
        )
        for name, value in options.items():
            setattr(self, name, value)

    def forward(
        self,
        pred: Tensor,
        target: Any,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        return _forward(type(self), self, pred, target, weight, avg_factor, reduction_override)


class FocalLoss(_Loss):
    """Equivalent to ``mmdet.models.losses.FocalLoss``."""

    function, options = staticmethod(sigmoid_focal_loss), ("gamma", "alpha")

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight, activated, gamma=gamma, alpha=alpha)


class QualityFocalLoss(_Loss):
    """Equivalent to ``mmdet.models.losses.QualityFocalLoss``."""

    function, options = staticmethod(quality_focal_loss), ("beta",)

    def __init__(
        self,
        use_sigmoid: bool = True,
        beta: float = 2.0,
        reduction: str = "mean",
        loss_weight: float = 1.0,
        activated: bool = False,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight, activated, beta=beta)


class VarifocalLoss(_Loss):
    """Equivalent to ``mmdet.models.losses.VarifocalLoss``."""

    function, options = staticmethod(varifocal_loss), ("alpha", "gamma", "iou_weighted")

    def __init__(
        self,
        use_sigmoid: bool = True,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        reduction: str = "mean",
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(use_sigmoid, reduction, loss_weight, alpha=alpha, gamma=gamma, iou_weighted=iou_weighted)


def _of(kind: type[_Loss]) -> Callable[..., Tensor]:
    """What stands in for the forward of mmdet's class of the same name."""

    def forward(
        self: Any,
        pred: Tensor,
        target: Any,
        weight: Tensor | None = None,
        avg_factor: float | Tensor | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        return _forward(kind, self, pred, target, weight, avg_factor, reduction_override)

    return forward


@with_original
def _gaussian(
    original: Callable[..., Tensor],
    self: Any,
    pred: Tensor,
    target: Tensor,
    pos_inds: Tensor | None = None,
    pos_labels: Tensor | None = None,
    weight: Tensor | None = None,
    avg_factor: float | Tensor | None = None,
    reduction_override: str | None = None,
) -> Tensor:
    """GaussianFocalLoss of heat maps, given as probabilities. Peaks by index and weights of positives or negatives are
    left to mmdet."""
    if pos_inds is not None or self.pos_weight != 1 or self.neg_weight != 1:
        return original(self, pred, target, pos_inds, pos_labels, weight, avg_factor, reduction_override)
    reduction, normalizer = _divisor(reduction_override or self.reduction, avg_factor, pred.numel())
    loss: Tensor = self.loss_weight * losses.gaussian_focal_loss(
        logits_of(pred), target, self.alpha, self.gamma, reduction, normalizer=normalizer, weight=weight
    )
    return loss


SWITCH = Switch(
    "mmdet",
    known="3.3.0",
    places={
        "mmdet.models.losses.focal_loss:FocalLoss.forward": _of(FocalLoss),
        "mmdet.models.losses.gfocal_loss:QualityFocalLoss.forward": _of(QualityFocalLoss),
        "mmdet.models.losses.varifocal_loss:VarifocalLoss.forward": _of(VarifocalLoss),
        "mmdet.models.losses.gaussian_focal_loss:GaussianFocalLoss.forward": _gaussian,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

# Owns: the names of mmcv.ops.focal_loss.
# Must not know: mmcv itself.
"""``from focal_ext.compat.mmcv import sigmoid_focal_loss, SigmoidFocalLoss, softmax_focal_loss, SoftmaxFocalLoss``"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from .. import losses
from ._conventions import checked_ids, without_last_background


def _ids_and_weight(
    input: Tensor, target: Tensor, weight: Tensor | None, background: bool
) -> tuple[Tensor, Tensor | None]:
    """Checked ids, and the weight of each row: that of its label."""
    classes = input.shape[-1]
    if weight is not None and weight.shape != (classes,):
        raise ValueError(f"weight: must hold one value per class, shape ({classes},), got {tuple(weight.shape)}")
    highest, convention = classes - 1, f"mmcv labels of the softmax loss: 0..{classes - 1}, background is one of them"
    if weight is not None:
        convention = f"mmcv reads weight[label], which has no entry for other labels than 0..{classes - 1}"
    elif background:
        highest, convention = classes, f"mmcv labels: 0..{classes - 1} positive, {classes} background"
    ids = checked_ids(input, target, 0, highest, convention)
    ids = without_last_background(ids, classes) if background else ids
    return ids, None if weight is None else weight[ids.clamp(0, classes - 1)]


def _over_rows(input: Tensor, reduction: str) -> tuple[str, float | None]:
    """mmcv's mean divides by rows."""
    return ("sum", max(input.shape[0], 1)) if reduction == "mean" else (reduction, None)


def sigmoid_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Equivalent to ``mmcv.ops.sigmoid_focal_loss``: logits (N, C), labels 0..C-1 or C for background, mean over the N
    rows.

    ``weight`` holds a value per class; the label's multiplies its whole row. With it labels of C are refused: mmcv
    reads past its end.
    """
    ids, row_weight = _ids_and_weight(input, target, weight, background=True)
    reduction, normalizer = _over_rows(input, reduction)
    column = None if row_weight is None else row_weight[:, None]
    return losses.sigmoid_focal_loss(input, ids, alpha, gamma, reduction, normalizer=normalizer, weight=column)


def softmax_focal_loss(
    input: Tensor,
    target: Tensor,
    gamma: float = 2.0,
    alpha: float = 0.25,
    weight: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Equivalent to ``mmcv.ops.softmax_focal_loss``: logits (N, C), labels 0..C-1, a loss per row, mean over the N
    rows.

    ``alpha`` multiplies the loss of every class alike, and ``weight[label]`` that of the row.
    """
    ids, row_weight = _ids_and_weight(input, target, weight, background=False)
    reduction, normalizer = _over_rows(input, reduction)
    return losses.softmax_focal_loss(
        input, ids, alpha, gamma, reduction, normalizer=normalizer, weight=row_weight, ignore_index=None
    )


class _Loss(nn.Module):
    """What mmcv's modules share: their function with its options."""

    function: Callable[..., Tensor]
    weight: Tensor | None

    def __init__(self, gamma: float, alpha: float, weight: Tensor | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma, self.alpha, self.reduction = gamma, alpha, reduction
        self.register_buffer("weight", weight)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return type(self).function(input, target, self.gamma, self.alpha, self.weight, self.reduction)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}, reduction={self.reduction}"


class SigmoidFocalLoss(_Loss):
    """Equivalent to ``mmcv.ops.SigmoidFocalLoss``."""

    function = staticmethod(sigmoid_focal_loss)


class SoftmaxFocalLoss(_Loss):
    """Equivalent to ``mmcv.ops.SoftmaxFocalLoss``."""

    function = staticmethod(softmax_focal_loss)

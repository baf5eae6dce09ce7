# Owns: monai.losses.FocalLoss.
# Must not know: monai itself, until patched() or apply() is called.
"""``from focal_ext.compat.monai import FocalLoss``, or ``focal_ext.compat.monai.apply()`` for the losses of
monai.losses.FocalLoss.

MONAI's class dimension is 1: the core reads it in place where ``class_dim=1`` does.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import _arguments as arguments
from .. import losses
from .._symbols import as_tensor
from ._conventions import check_dense, check_hard, checked_ids, without_half
from ._patching import Switch

IGNORED = -2


class _Divisor(NamedTuple):
    """What the sum over logits is divided by: a number for the call, or one per image as a weight."""

    normalizer: float | Tensor | None = None
    image_weight: Tensor | None = None


class FocalLoss(nn.Module):
    """Equivalent to ``monai.losses.FocalLoss``: logits (B, C, ...), targets (B, C, ...) of 0 and 1, or ids (B, 1, ...)
    with to_onehot_y.

    Labels are 0..C-1; 0 is the background that include_background=False leaves out, and ignore_index may be any value.
    As in MONAI, a sequence of alphas weighs positives only. "sum" is the sum of spatial means, or the mean where there
    are no spatial dimensions. With ignore_index "mean" divides by voxels, not by logits. float64 logits stay float64.

    With use_softmax a float alpha weighs the classes from 1 on and 1 - alpha the class 0; it is used only where class 0
    counts. Targets may be soft there, except with reduction="none".
    """

    class_weight: Tensor | None

    def __init__(
        self,
        include_background: bool = True,
        to_onehot_y: bool = False,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        weight: Sequence[float] | float | Tensor | None = None,
        reduction: str = "mean",
        use_softmax: bool = False,
        ignore_index: int | None = None,
    ) -> None:
        super().__init__()
        self.include_background, self.to_onehot_y, self.use_softmax = include_background, to_onehot_y, use_softmax
        self.gamma, self.ignore_index = gamma, ignore_index
        self.reduction = str(getattr(reduction, "value", reduction))
        if self.reduction not in ("none", "mean", "sum"):
            raise ValueError(f"reduction: must be 'none', 'mean' or 'sum', got {reduction!r}")
        self.alpha = alpha if alpha is None or isinstance(alpha, (int, float)) else torch.as_tensor(alpha)
        self.register_buffer("class_weight", None if weight is None else torch.as_tensor(weight), persistent=True)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        channels = input.shape[1]
        to_ids = self._applies("to_onehot_y=True", self.to_onehot_y, channels)
        first = int(self._applies("include_background=False", not self.include_background, channels))
        kept = None if self.ignore_index is None else _kept(target, self.ignore_index)
        logits = without_half(input, self.reduction)[:, first:]
        if to_ids:
            targets = self._ids(input, target, first)
        else:
            if target.shape != input.shape:
                raise ValueError(
                    f"targets: monai takes dense targets of the logits' shape {tuple(input.shape)}, got "
                    f"{tuple(target.shape)};"
                    " class ids need to_onehot_y=True"
                )
            if kept is not None and target.shape[1] == 1:
                target = target.masked_fill(kept == 0, 0)  # the number that is ignored is no label
            check_dense(input, target, "monai")
            if not self.use_softmax or self.reduction == "none":
                check_hard(input, target, "monai")
            targets = target[:, first:]
        return (self._softmax if self.use_softmax else self._sigmoid)(
            logits, targets, kept, self._divisor(logits, kept)
        )

    def _applies(self, option: str, asked: bool, channels: int) -> bool:
        if asked and channels == 1:
            warnings.warn(f"single channel prediction, `{option}` ignored.", stacklevel=3)
        return asked and channels > 1

    def _ids(self, input: Tensor, target: Tensor, first: int) -> Tensor:
        """Ids from the class `first` on: what lies before it becomes -1, our background."""
        classes = input.shape[1]
        if target.shape[1] != 1:
            raise ValueError(
                f"targets: monai's class ids have the shape (B, 1, ...), got {tuple(target.shape)}; dense targets "
                "need to_onehot_y=False"
            )
        ids = checked_ids(
            input.movedim(1, -1),
            target[:, 0].long(),
            0,
            classes - 1,
            f"monai labels: 0..{classes - 1}",
            self.ignore_index,
        )
        return (
            (ids - first).masked_fill(ids == self.ignore_index, IGNORED)
            if self.ignore_index is not None
            else ids - first
        )

    def _class_weight(self, logits: Tensor) -> Tensor | None:
        if self.class_weight is None:
            return None
        weight = self.class_weight.to(logits.device)
        if weight.dim() and (logits.shape[1] == 1 or weight.shape != logits.shape[1:2]):
            raise ValueError(
                f"weight: must be one number, or one for each of the {logits.shape[1]} channels in use (more than "
                f"one), got {tuple(weight.shape)}"
            )
        if arguments.values_are_readable(weight) and bool((weight < 0).any()):
            raise ValueError(f"weight: must not be negative, got {weight.tolist()}")
        return weight

    def _divisor(self, logits: Tensor, kept: Tensor | None) -> _Divisor:
        if self.reduction == "none":
            return _Divisor()
        if self.reduction == "mean" or logits.dim() == 2:
            return _Divisor(
                max(logits.numel(), 1) if kept is None else kept.sum().clamp(min=torch.finfo(kept.dtype).eps)
            )
        if kept is None:
            return _Divisor(max(math.prod(logits.shape[2:]), 1))
        voxels = (
            kept.flatten(1)
            .sum(1)
            .clamp(min=torch.finfo(kept.dtype).eps)
            .to(torch.promote_types(logits.dtype, torch.float32))
        )
        return _Divisor(image_weight=1 / voxels.view(-1, *[1] * (logits.dim() - 1)))

    def _per_class(self, alpha: Tensor, logits: Tensor) -> Tensor:
        if alpha.shape != logits.shape[1:2]:
            raise ValueError(
                f"alpha: a sequence must hold one value for each of the {logits.shape[1]} channels in use, got "
                f"{tuple(alpha.shape)}"
            )
        return alpha.to(logits.device, torch.promote_types(logits.dtype, torch.float32))

    def _sigmoid(self, logits: Tensor, targets: Tensor, kept: Tensor | None, divisor: _Divisor) -> Tensor:
        alpha, weight = self.alpha, self._class_weight(logits)
        if isinstance(alpha, Tensor):
            # a for positives and 1 for negatives is (1 + a) times a / (1 + a) and 1 / (1 + a).
            alpha = self._per_class(alpha, logits)
            weight = _product(weight, 1 + alpha)
            alpha = alpha / (1 + alpha)
        if weight is not None and weight.dim():
            weight = weight.view(-1, *[1] * (logits.dim() - 2))
        if kept is not None and targets.shape == logits.shape:
            weight = _product(weight, kept)
        weight, reduction = _product(weight, divisor.image_weight), "none" if self.reduction == "none" else "sum"
        return losses.sigmoid_focal_loss(
            logits, targets, alpha, self.gamma, reduction, normalizer=divisor.normalizer, weight=weight, class_dim=1
        )

    def _softmax(self, logits: Tensor, targets: Tensor, kept: Tensor | None, divisor: _Divisor) -> Tensor:
        weight = None if divisor.image_weight is None else divisor.image_weight[:, 0]
        if targets.shape == logits.shape:
            weight = _product(weight, None if kept is None else kept[:, 0])
        else:
            targets = targets.masked_fill(targets == -1, IGNORED)  # the background that is left out
        reduction, alpha = "none" if self.reduction == "none" else "sum", self._softmax_alpha(logits)
        loss = losses.softmax_focal_loss(
            logits,
            targets,
            alpha,
            self.gamma,
            reduction,
            normalizer=divisor.normalizer,
            weight=weight,
            ignore_index=IGNORED,
            class_dim=1,
        )
        return loss[:, None] * _one_hot(targets, logits) if reduction == "none" else loss

    def _softmax_alpha(self, logits: Tensor) -> Tensor | None:
        """alpha and weight as one factor for each class in use."""
        classes, alpha = logits.shape[1], self.alpha
        if isinstance(alpha, Tensor):
            alpha = self._per_class(alpha, logits)
        elif alpha is not None and not self.include_background:
            warnings.warn("`include_background=False`, scalar `alpha` ignored when using softmax.", stacklevel=4)
            alpha = None
        elif alpha is not None:
            dtype = torch.promote_types(logits.dtype, torch.float32)
            alpha = torch.stack(
                [as_tensor(1 - alpha, logits, dtype), *[as_tensor(alpha, logits, dtype)] * (classes - 1)]
            )
        factor = _product(alpha, self._class_weight(logits))
        return None if factor is None else factor.expand(classes).to(torch.promote_types(logits.dtype, torch.float32))


def _kept(target: Tensor, ignore_index: int) -> Tensor:
    """1 where a voxel counts, of shape (B, 1, ...): dense targets are ignored where the class is set, or where none
    is."""
    if target.shape[1] == 1:
        return torch.ne(target, ignore_index).float()
    if 0 <= ignore_index < target.shape[1]:
        return 1 - target[:, ignore_index, None].float()
    return (target.sum(1, keepdim=True) > 0).float()


def _one_hot(targets: Tensor, logits: Tensor) -> Tensor:
    """1 for the class of a voxel, of the logits' shape; dense targets must name no more than one."""
    if targets.shape != logits.shape:
        classes = torch.arange(logits.shape[1], device=logits.device).view(-1, *[1] * (logits.dim() - 2))
        return (targets[:, None] == classes).to(logits.dtype)
    if arguments.values_are_readable(targets) and bool((targets.sum(1) > 1).any()):
        raise ValueError(
            'targets: with use_softmax=True and reduction="none" a voxel must be of one class at most;'
            ' use reduction "mean" or "sum"'
        )
    return targets.to(logits.dtype)


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a * b


def _forward(self: Any, input: Tensor, target: Tensor) -> Tensor:
    """MONAI's module has the same attributes under the same names."""
    alpha = self.alpha.tolist() if isinstance(self.alpha, Tensor) else self.alpha
    options = self.gamma, alpha, self.class_weight, self.reduction, self.use_softmax, self.ignore_index
    fused: Tensor = FocalLoss(self.include_background, self.to_onehot_y, *options)(input, target)
    return fused


SWITCH = Switch("monai", known="1.6.1", places={"monai.losses.focal_loss:FocalLoss.forward": _forward})
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

# Owns: segmentation_models_pytorch.losses.FocalLoss over the core; which options are left to it.
# Must not know: segmentation_models_pytorch itself, until patched() or apply() is called.
"""``focal_ext.compat.segmentation_models_pytorch.apply()``: the losses of its FocalLoss, built before or after, in
every mode. ``normalized``, ``reduced_threshold``, ``from_logits=False``, soft targets and other reductions than "mean"
and "sum" are left to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import _arguments as arguments
from .. import losses
from ._conventions import is_hard
from ._patching import Switch, with_original


@with_original
def _forward(original: Callable[..., Tensor], self: Any, y_pred: Tensor, y_true: Tensor) -> Tensor:
    """Each class's loss has its own mean, over the same pixels: the mean over all logits, and a sum divided by the
    classes."""
    options = self.focal_loss_fn.keywords
    has_more = (
        options["normalized"]
        or options["reduced_threshold"] is not None
        or not self.from_logits
        or self.reduction not in ("mean", "sum")
    )
    if has_more or not is_hard(y_true, self.ignore_index):
        return original(self, y_pred, y_true)
    alpha, gamma, weight, normalizer, class_dim = options["alpha"], options["gamma"], None, None, 1
    if self.mode == "binary":
        y_pred, y_true, class_dim = y_pred.reshape(-1), y_true.reshape(-1), 0
    else:
        normalizer = y_pred.shape[1] if self.reduction == "sum" else None
        if self.class_weights is not None:
            weights = self.class_weights.to(y_pred.device, arguments.accumulation_dtype(y_pred.dtype))
            weight = (weights * (len(weights) / weights.sum())).view(-1, *[1] * (y_pred.dim() - 2))
    return losses.sigmoid_focal_loss(
        y_pred,
        y_true,
        alpha,
        gamma,
        self.reduction,
        normalizer=normalizer,
        weight=weight,
        ignore_index=self.ignore_index,
        class_dim=class_dim,
    )


SWITCH = Switch(
    "segmentation_models_pytorch",
    known="0.6.0",
    places={"segmentation_models_pytorch.losses.focal:FocalLoss.forward": _forward},
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

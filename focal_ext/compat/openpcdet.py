# Owns: the focal losses of OpenPCDet over the core.
# Must not know: OpenPCDet itself, until patched() or apply() is called.
"""``focal_ext.compat.openpcdet.apply()``: the classification loss of SECOND, PointPillars and PV-RCNN, and the heat
maps of CenterPoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import losses
from ._conventions import logits_of
from ._patching import Switch


def _forward(self: Any, input: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The loss of each logit (B, anchors, classes) times the weight of its anchor."""
    if weights.dim() == 2 or (weights.dim() == 1 and target.dim() == 2):
        weights = weights.unsqueeze(-1)
    return losses.sigmoid_focal_loss(input, target, self.alpha, self.gamma, "none", weight=weights)


def _heat_maps(pred: Tensor, gt: Tensor, mask: Tensor | None = None) -> Tensor:
    """The loss of probabilities (B, C, H, W), divided by the peaks that the mask (B, H, W) keeps, or by 1."""
    weight = None if mask is None else mask[:, None].to(pred.dtype)
    peaks = (gt == 1).to(pred.dtype)
    normalizer = (peaks if weight is None else peaks * weight).sum().clamp(min=1)
    loss: Tensor = losses.gaussian_focal_loss(
        logits_of(pred), gt, 2.0, 4.0, "sum", normalizer=normalizer, weight=weight
    )
    return loss


def _module_of_heat_maps(self: Any, out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
    return _heat_maps(out, target, mask)


SWITCH = Switch(
    "pcdet",
    known="0.6.0",
    places={
        "pcdet.utils.loss_utils:SigmoidFocalClassificationLoss.forward": _forward,
        "pcdet.utils.loss_utils:neg_loss_cornernet": _heat_maps,
        "pcdet.utils.loss_utils:FocalLossCenterNet.forward": _module_of_heat_maps,  # keeps the function in itself
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

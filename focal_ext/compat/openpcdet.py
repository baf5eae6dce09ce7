# Owns: the focal losses of OpenPCDet over the core.
# Must not know: OpenPCDet itself, until patched() or apply() is called.
"""``focal_ext.compat.openpcdet.apply()``: the classification loss of SECOND, PointPillars and PV-RCNN."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import losses
from ._patching import Switch


def _forward(self: Any, input: Tensor, target: Tensor, weights: Tensor) -> Tensor:
    """The loss of each logit (B, anchors, classes) times the weight of its anchor."""
    if weights.dim() == 2 or (weights.dim() == 1 and target.dim() == 2):
        weights = weights.unsqueeze(-1)
    return losses.sigmoid_focal_loss(input, target, self.alpha, self.gamma, "none", weight=weights)


SWITCH = Switch("pcdet", known="0.6.0", places={"pcdet.utils.loss_utils:SigmoidFocalClassificationLoss.forward": _forward})
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

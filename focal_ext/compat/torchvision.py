# Owns: torchvision.ops.sigmoid_focal_loss, and its place in torchvision's detectors.
# Must not know: torchvision itself, until patched(), apply() or convert_() is called or a head is named.
"""``from focal_ext.compat.torchvision import sigmoid_focal_loss``

A RetinaNet or FCOS that exists, trained or not, takes the fused head with all its weights by ``convert_(model)``.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import losses
from ._conventions import check_dense
from ._patching import Switch


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Equivalent to ``torchvision.ops.sigmoid_focal_loss``: dense targets, alpha -1 for off. Sums of half logits are
    float32."""
    check_dense(inputs, targets, "torchvision")
    return losses.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)


SWITCH = Switch(
    "torchvision", known="0.29.1", places={"torchvision.ops.focal_loss:sigmoid_focal_loss": sigmoid_focal_loss}
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore


def __getattr__(name: str) -> Any:
    if name in ("RetinaNetClassificationHead", "FCOSHead", "convert_", "losses_and_detections"):
        from . import _torchvision_heads  # imports torchvision

        return getattr(_torchvision_heads, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

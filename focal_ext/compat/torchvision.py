# Owns: torchvision.ops.sigmoid_focal_loss, and its place in torchvision's detectors.
# Must not know: torchvision itself, until patched() is entered or a head is named.
"""``from focal_ext.compat.torchvision import sigmoid_focal_loss``

A detector that exists, trained or not, takes the fused head with all its weights by one line::

    model.head.classification_head.__class__ = focal_ext.compat.torchvision.RetinaNetClassificationHead    # retinanet_*
    model.head.__class__ = focal_ext.compat.torchvision.FCOSHead                                           # fcos_*
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from .. import losses
from ._conventions import check_dense
from ._patching import replaced


def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none") -> Tensor:
    """Equivalent to ``torchvision.ops.sigmoid_focal_loss``: dense targets, alpha -1 for off. Sums of half logits are float32."""
    check_dense(inputs, targets, "torchvision")
    return losses.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)


def patched() -> AbstractContextManager[None]:
    """torchvision's RetinaNet and FCOS use the fused function inside ``with patched():``, and the original one again after it."""
    return replaced(("torchvision.models.detection.retinanet", "torchvision.models.detection.fcos"), "sigmoid_focal_loss", sigmoid_focal_loss)


def __getattr__(name: str) -> Any:
    if name in ("RetinaNetClassificationHead", "FCOSHead"):
        from . import _torchvision_heads  # imports torchvision

        return getattr(_torchvision_heads, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# Owns: the names of effdet.loss.
# Must not know: effdet itself, until patched() or apply() is called.
"""``with focal_ext.compat.effdet.patched(): loss, class_loss, box_loss = criterion(...)``"""

from __future__ import annotations

from torch import Tensor

from .. import _arguments as arguments
from .. import losses
from .._symbols import as_tensor
from ._conventions import as_scalar, check_dense, check_hard
from ._patching import Switch


def new_focal_loss(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float, normalizer: float | Tensor, label_smoothing: float = 0.01
) -> Tensor:
    """Equivalent to ``effdet.loss.new_focal_loss``: the loss of each logit divided by ``normalizer``; dense targets."""
    check_dense(logits, targets, "effdet")
    divisor, dtype = as_scalar(normalizer), arguments.accumulation_dtype(logits.dtype)
    weight = 1 / (divisor.to(logits.device, dtype) if isinstance(divisor, Tensor) else as_tensor(divisor, logits, dtype))
    return losses.sigmoid_focal_loss(logits, targets, alpha, gamma, "none", weight=weight, label_smoothing=label_smoothing)


def focal_loss_legacy(logits: Tensor, targets: Tensor, alpha: float, gamma: float, normalizer: float | Tensor) -> Tensor:
    """Equivalent to ``effdet.loss.focal_loss_legacy``, whose targets are 0 or 1."""
    check_dense(logits, targets, "effdet")
    check_hard(logits, targets, "effdet's legacy loss")
    return new_focal_loss(logits, targets, alpha, gamma, normalizer, label_smoothing=0.0)


# Not where config.jit_loss compiled the loss before.
SWITCH = Switch("effdet", known="0.4.1", places={"effdet.loss:new_focal_loss": new_focal_loss, "effdet.loss:focal_loss_legacy": focal_loss_legacy})
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

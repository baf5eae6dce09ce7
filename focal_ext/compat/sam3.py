# Owns: the focal loss of SAM 3's training code, in the place of its own Triton kernels, too.
# Must not know: SAM 3, until patched() or apply() is called.
"""``focal_ext.compat.sam3.apply()``"""

from __future__ import annotations

from torch import Tensor

from .. import losses
from . import sam2
from ._conventions import unless_negative
from ._patching import Switch


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    num_boxes: float | Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    loss_on_multimask: bool = False,
    reduce: bool = True,
    triton: bool = True,
) -> Tensor:
    """Equivalent to ``sam3.train.loss.loss_fns.sigmoid_focal_loss`` on any device, and of any gamma, whatever
    ``triton`` is.

    reduce: False gives the loss of each logit. With ``triton`` an alpha outside [0, 1] is an error, as it is there.
    """
    alpha_or_off = alpha if triton else unless_negative(alpha)
    if alpha_or_off is not None and not 0 <= alpha_or_off <= 1:
        raise RuntimeError(f"alpha: must be in [0, 1], got {alpha}; triton=False takes a negative one for off")
    if not reduce:
        return losses.sigmoid_focal_loss(inputs, targets, alpha_or_off, gamma, "none")
    return sam2.sigmoid_focal_loss(
        inputs, targets, num_boxes, -1 if alpha_or_off is None else alpha, gamma, loss_on_multimask
    )


SWITCH = Switch("sam3", known="0.1.4", places={"sam3.train.loss.loss_fns:sigmoid_focal_loss": sigmoid_focal_loss})
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

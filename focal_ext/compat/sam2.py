# Owns: the focal loss of SAM 2's and SAM 3's training code.
# Must not know: either of them, until patched() or apply() is called.
"""``focal_ext.compat.sam2.apply()`` in SAM 2's repository, whose training code is the package ``training``; for SAM 3
there is ``focal_ext.compat.sam3``."""

from __future__ import annotations

import math

from torch import Tensor

from .. import _arguments as arguments
from .. import losses
from ._conventions import as_scalar, check_dense, unless_negative
from ._patching import Switch


@arguments.quiet_under_jit_trace
def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    num_objects: float | Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    loss_on_multimask: bool = False,
) -> Tensor:
    """Equivalent to ``training.loss_fns.sigmoid_focal_loss``: the mean over dimension 1, summed over the others and
    divided by num_objects.

    loss_on_multimask: of logits (N, M, H, W) the mean of each mask, of shape (N, M), divided by num_objects.
    """
    check_dense(inputs, targets, "SAM")
    if loss_on_multimask and inputs.dim() != 4:
        raise ValueError(f"inputs: with loss_on_multimask they are masks (N, M, H, W), got shape {tuple(inputs.shape)}")
    averaged = math.prod(inputs.shape[2:]) if loss_on_multimask else inputs.shape[1]
    normalizer = as_scalar(num_objects) * max(averaged, 1)
    batch_dims = 2 if loss_on_multimask else 0
    return losses.sigmoid_focal_loss(
        inputs, targets, unless_negative(alpha), gamma, "sum", normalizer=normalizer, batch_dims=batch_dims
    )


SWITCH = Switch(
    "sam2", known="1.1.0", places={"training.loss_fns:sigmoid_focal_loss": sigmoid_focal_loss}, distribution="SAM-2"
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

# Owns: the sigmoid_focal_loss of the DETR family: Deformable DETR, DINO, detrex, SAM's training code, transformers.
# Must not know: any of them. focal_ext.compat.transformers has transformers' switch, which patched() here is, too.
"""``from focal_ext.compat.detr import sigmoid_focal_loss``"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor

from .. import _arguments as arguments
from .. import losses
from ._conventions import as_scalar, check_dense, unless_negative
from ._patching import Names


@arguments.quiet_under_jit_trace
def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, num_boxes: float | Tensor, alpha: float = 0.25, gamma: float = 2
) -> Tensor:
    """Equivalent to DETR's ``loss.mean(1).sum() / num_boxes`` of dense targets: logits (batch, queries, classes) or
    (masks, pixels)."""
    check_dense(inputs, targets, "DETR")
    if inputs.dim() < 2:
        raise ValueError(
            f"inputs: DETR averages over dimension 1, of queries or pixels, got shape {tuple(inputs.shape)}"
        )
    normalizer = as_scalar(num_boxes) * max(inputs.shape[1], 1)
    return losses.sigmoid_focal_loss(inputs, targets, unless_negative(alpha), gamma, "sum", normalizer=normalizer)


def patched() -> AbstractContextManager[Names]:
    """The same as ``focal_ext.compat.transformers.patched()``."""
    from . import transformers

    return transformers.patched()

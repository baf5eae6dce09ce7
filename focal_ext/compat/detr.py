# Owns: the sigmoid_focal_loss of the DETR family: Deformable DETR, DINO, detrex, SAM's training code, transformers.
# Must not know: any of them, until patched() is entered.
"""``from focal_ext.compat.detr import sigmoid_focal_loss``"""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch import Tensor

from .. import _arguments as arguments
from .. import losses
from ._conventions import as_scalar, check_dense, unless_negative
from ._patching import replaced


@arguments.quiet_under_jit_trace
def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, num_boxes: float | Tensor, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    """Equivalent to DETR's ``loss.mean(1).sum() / num_boxes`` of dense targets: logits (batch, queries, classes) or (masks, pixels)."""
    check_dense(inputs, targets, "DETR")
    if inputs.dim() < 2:
        raise ValueError(f"inputs: DETR averages over dimension 1, of queries or pixels, got shape {tuple(inputs.shape)}")
    normalizer = as_scalar(num_boxes) * max(inputs.shape[1], 1)
    return losses.sigmoid_focal_loss(inputs, targets, unless_negative(alpha), gamma, "sum", normalizer=normalizer)


def patched() -> AbstractContextManager[None]:
    """transformers' DETR losses use the fused function inside ``with patched():``, and the original one again after it."""
    return replaced(("transformers.loss.loss_deformable_detr", "transformers.loss.loss_for_object_detection"), "sigmoid_focal_loss", sigmoid_focal_loss)

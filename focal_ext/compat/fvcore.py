# Owns: the names of fvcore.nn.focal_loss.
# Must not know: fvcore itself.
"""``from focal_ext.compat.fvcore import sigmoid_focal_loss, sigmoid_focal_loss_jit``"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import losses
from ._conventions import check_dense, unless_negative, without_half


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Equivalent to ``fvcore.nn.sigmoid_focal_loss``: dense targets, alpha off by default.

    float64 logits stay float64, where fvcore rounds them to float32.
    """
    check_dense(inputs, targets, "fvcore")
    return losses.sigmoid_focal_loss(without_half(inputs, reduction), targets, unless_negative(alpha), gamma, reduction)


def sigmoid_focal_loss_star(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 1, reduction: str = "none"
) -> Tensor:
    """Equivalent to ``fvcore.nn.sigmoid_focal_loss_star`` (FL*, appendix of the paper): -alpha_t log sigmoid(gamma x_t)
    / gamma."""
    check_dense(inputs, targets, "fvcore")
    t = targets.to(torch.promote_types(inputs.dtype, torch.float32))
    shifted = gamma * without_half(inputs, "none") * (2 * t - 1)
    factor = torch.ones_like(t) if unless_negative(alpha) is None else alpha * t + (1 - alpha) * (1 - t)
    return losses.sigmoid_focal_loss(shifted, torch.ones_like(shifted), None, 0.0, reduction, weight=factor / gamma)


sigmoid_focal_loss_jit = sigmoid_focal_loss
sigmoid_focal_loss_star_jit = sigmoid_focal_loss_star

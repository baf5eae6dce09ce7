# Owns: the textbook formula of the softmax focal loss in plain PyTorch, differentiable to any order.
# Must not know: the native library, signatures, weights, reductions.
#
# Of the largest logit, R being the sum of exp(x_j - max) over the others, 1 - p is R / (1 + R) and -log p is log1p(R). Of all others p is
# at most 1/2, and 1 - p and the logarithm of the whole sum lose nothing; nor do their derivatives.
from __future__ import annotations

import torch
from torch import Tensor

from ._call import Call

# Beyond it exp(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 * inf.
LIMIT = 800.0


def _power(u: Tensor, p: Tensor, gamma: float) -> Tensor:
    """u ** gamma for u = 1 - p. Near u = 0 a power below 1 has too large a derivative; near u = 1 a large one sees p that u has rounded off."""
    gamma = min(gamma, 1e35)  # times a cross entropy of 800 it stays finite in float32
    none = u == 0 if gamma >= 1 else u < torch.finfo(u.dtype).tiny
    power = torch.where(none, u.detach().pow(gamma), torch.where(none, 1.0, u).pow(gamma))
    if gamma <= 16:
        return power
    small = p < 0.5
    return torch.where(small, torch.exp(gamma * torch.log1p(-torch.where(small, p, 0.0))), power)


def row_losses(x: Tensor, t: Tensor, factor: Tensor, call: Call) -> Tensor:
    """sum_c factor_c u_c^gamma (-log p_c) of [rows, classes] logits, as [rows, 1]; `factor` is alpha_c t_c, `t` the targets."""
    rows, classes = x.shape
    if classes == 0:
        return x.sum(-1, keepdim=True)
    top = x.detach().argmax(-1, keepdim=True)
    is_top = top == torch.arange(classes, device=x.device)
    largest = x.gather(-1, top)
    # A row's largest logit is a constant for all others, unless it is infinite: then it is all that they depend on.
    shift = torch.where(largest.isinf(), largest, largest.detach())
    z = torch.where(is_top & largest.isinf(), 0.0, x - shift)
    total = torch.exp(z).sum(-1, keepdim=True)
    rest = torch.where(is_top, 0.0, torch.exp(torch.where(is_top, 0.0, x - largest))).sum(-1, keepdim=True)
    p = torch.exp(z) / total
    u = torch.where(is_top, rest / (1 + rest), 1 - p)
    log_total = torch.where(is_top, torch.log1p(rest), torch.log(total))
    z = torch.where(is_top, 0.0, z)
    near = torch.where(z < -LIMIT, -LIMIT, z)
    beyond = torch.where(z < -LIMIT, -LIMIT - z, 0.0)  # there p is 0 and u^gamma 1

    power = torch.ones_like(u) if call.gamma == 0 else _power(u, p, call.gamma)
    if call.smoothing:
        # The modulating factor and alpha are those of the class id; the cross entropy is that of the smoothed target.
        power, factor = (power * t).sum(-1, keepdim=True), factor.sum(-1, keepdim=True)
        t = t * (1 - call.smoothing) + call.smoothing / classes
        beyond = torch.where((t == 0) | (factor == 0), 0.0, beyond)
        won = power == 0
        inside = power * (t * (log_total - near)).sum(-1, keepdim=True)
        outside = power * (t * torch.where(won, 0.0, beyond)).sum(-1, keepdim=True)
        return factor * (inside + torch.where(won, 0.0, outside))
    beyond = torch.where(factor == 0, 0.0, beyond)
    return (factor * (power * (log_total - near) + beyond)).sum(-1, keepdim=True)

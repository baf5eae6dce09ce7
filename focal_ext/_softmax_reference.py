# Owns: the textbook formula of the softmax focal loss in plain PyTorch, differentiable to any order.
# Must not know: the native library, signatures, weights, reductions.
#
# Of the largest logit, R being the sum of exp(x_j - max) over the others, 1 - p is R / (1 + R) and -log p is log1p(R). Of all others p is
# at most 1/2, and 1 - p and the logarithm of the whole sum lose nothing; nor do their derivatives.
from __future__ import annotations

import torch
from torch import Tensor

from ._call import Call
from ._power import powered
from ._symbols import at_most, holds

# Beyond it exp(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 * inf.
LIMIT = 800.0


def _log_rest(others: Tensor) -> Tensor:
    """log R, which is -inf where no other logit counts, with derivatives of 0 there."""
    alone = others.isneginf().all(-1, keepdim=True)
    return torch.where(alone, -torch.inf, torch.where(alone, 0.0, others).logsumexp(-1, keepdim=True))


def _power(u: Tensor, p: Tensor, others: Tensor, is_top: Tensor, gamma: float) -> Tensor:
    """u ** gamma for u = 1 - p. Of the largest logit log u is log R - log1p(R); a large gamma needs the others' log u, for their u near 1
    has rounded it off."""
    exponent = at_most(gamma, 1e35, u)  # times a cross entropy of 800 it stays finite in float32
    log_rest = _log_rest(others)
    of_top = torch.where(log_rest.isneginf(), 0.0, log_rest) - torch.log1p(torch.exp(log_rest))
    log_u = torch.where(is_top, of_top, torch.log1p(-torch.where(is_top, 0.0, p)))
    value = u.detach().pow(exponent)
    return powered(torch.where(is_top, value, torch.exp(exponent * log_u)) if holds(gamma > 16) else value, log_u, exponent)


def row_losses(x: Tensor, t: Tensor, factor: Tensor, call: Call) -> Tensor:
    """sum_c factor_c u_c^gamma (-log p_c) of [rows, classes] logits, as [rows, 1]; `factor` is alpha_c t_c, `t` the targets."""
    rows, classes = x.shape
    if classes == 0:
        return x.sum(-1, keepdim=True)
    top = x.detach().argmax(-1, keepdim=True)
    is_top = top == torch.arange(classes, device=x.device)
    largest = x.gather(-1, top)
    others = torch.where(is_top, -torch.inf, x - largest)
    rest = torch.exp(others).sum(-1, keepdim=True)
    # Where the largest p is below 1/2 its logit is a constant for all others: their derivatives by it would be 1 minus nearly 1. Above 1/2
    # it is the constant that would cost the second derivative its digits; and an infinite one is all that they depend on.
    shift = torch.where(largest.isinf() | (rest < 1), largest, largest.detach())
    z = torch.where(is_top & (largest.isinf() | (rest < 1)), 0.0, x - shift)
    total = torch.exp(z).sum(-1, keepdim=True)
    p = torch.exp(z) / total
    u = torch.where(is_top, rest / (1 + rest), 1 - p)
    log_total = torch.where(is_top, torch.log1p(rest), torch.log(total))
    z = torch.where(is_top, 0.0, z)
    near = torch.where(z < -LIMIT, -LIMIT, z)
    beyond = torch.where(z < -LIMIT, -LIMIT - z, 0.0)  # there p is 0 and u^gamma 1

    power = torch.ones_like(u) if holds(call.gamma == 0, unknown=False) else _power(u, p, others, is_top, call.gamma)
    if holds(call.smoothing != 0):
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

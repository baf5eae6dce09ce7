# Owns: what the reference formulas are made of: functions that are right to any order of derivative, at every logit.
# Must not know: any one loss, arguments, the native library.
#
# Written for exactness: no 1 - p of a p near 1, no x - x t, no F.softplus (its threshold of 20 costs 9e-11 in float64),
# no second derivative by a power of what underflows.
from __future__ import annotations

import torch
from torch import Tensor

from ._symbols import at_most, holds, is_constant

# Beyond it sigmoid(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 *
# inf.
LIMIT = 800.0


def bounded(x: Tensor, limit: float) -> Tensor:
    """x.clamp(-limit, limit), but the gradient of NaN is NaN and not 0."""
    return torch.where(x > limit, limit, torch.where(x < -limit, -limit, x))


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), also known as -log sigmoid(-x). F.logsigmoid's second derivative takes 1 - y of a y near 1 and
    is 0 from 37 on."""
    above = x > 0
    return torch.where(above, x, 0.0) + torch.log1p(torch.exp(torch.where(above, -x, x)))


def powered(value: Tensor, log_u: Tensor, gamma: float | Tensor) -> Tensor:
    """`value`, which is u ** gamma, differentiated as exp(gamma log u).

    Where u underflows, pow's second derivative is NaN: u^(gamma - 2) is infinite there, and u' is 0.
    """
    return value.detach() * torch.exp(gamma * (log_u - log_u.detach()))


def power(u: Tensor, gamma: float, x: Tensor, t: Tensor) -> Tensor:
    """u ** gamma for u = 1 - p_t.

    For a hard target log u is known, and exp(gamma log u) serves where u itself does not: below gamma 1, where u
    underflows long before its power; at a large gamma, where u near 1 is rounded; and for a gamma that changes from
    step to step of a graph, where to ask for its size would compile the graph anew. It is off by roundings of
    gamma log u.
    """
    exponent = at_most(gamma, 1e36, u)
    if t.requires_grad:
        return u.pow(exponent)
    hard = (t == 0) | (t == 1)
    log_u = -softplus(torch.where(t == 1, x, -x))
    value = u.pow(exponent) if is_constant(gamma) and 1 <= gamma <= 16 else torch.exp(exponent * log_u)
    return torch.where(hard, powered(value, log_u, exponent), torch.where(hard, 1.0, u).pow(exponent))


def sigmoids(x: Tensor) -> tuple[Tensor, Tensor]:
    """p and q = 1 - p, constant beyond the limit. Autograd differentiates sigmoid as y (1-y), which is 0 where y rounds
    to 1: so the larger of the two is 1 minus the smaller, whose derivative is exact."""
    near = bounded(x, LIMIT)
    p, q = torch.sigmoid(near), torch.sigmoid(-near)
    return torch.where(x > 0, 1 - q, p), torch.where(x > 0, q, 1 - p)


def cross_entropy(x: Tensor, t: Tensor, rest: Tensor | None = None) -> Tensor:
    """-t log p - rest log q, linear beyond the limit; rest is 1 - t, given where the difference would lose its
    digits."""
    rest = 1 - t if rest is None else rest
    near = bounded(x, LIMIT)
    ce = softplus(near) * rest + softplus(-near) * t
    # strictly: at the limit itself `near` has the gradient
    above = torch.where((x > LIMIT) & (rest != 0), (x - LIMIT) * rest, 0.0)
    below = torch.where((x < -LIMIT) & (t != 0), (-x - LIMIT) * t, 0.0)
    return ce + above + below


def negative_modulator(x: Tensor, gamma: float, live: float = 1.0) -> Tensor:
    """p^gamma."""
    return modulated(power(sigmoids(x)[0], gamma, bounded(x, LIMIT), torch.zeros_like(x)), live)


def power_of_score(score: Tensor, gamma: float | Tensor) -> Tensor:
    """score ** gamma, of which NaN ** 0 is NaN: what is not known shows. 0 ** gamma is 0 also of a gamma that float32
    rounds to 0."""
    power = score.pow(gamma)
    if not isinstance(gamma, Tensor) and 0 < gamma < 1e-30:
        power = torch.where(score == 0, 0.0, power)
    return torch.where(score.isnan(), score, power)


def times(weight: Tensor, ce: Tensor) -> Tensor:
    """weight ce, 0 where the weight is 0, also of an infinite cross entropy."""
    return torch.where((weight == 0) & ce.isinf(), 0.0, weight * ce)


def modulated(modulator: Tensor, live: float) -> Tensor:
    """The modulator, as a constant where it has no gradient."""
    return modulator if live else modulator.detach()


def focal(x: Tensor, t: Tensor, gamma: float, smoothing: float = 0.0, live: float = 1.0) -> Tensor:
    """u^gamma ce with u = p (1-t) + q t = 1 - p_t, of logits x and targets t in [0, 1] (Lin et al. 2017, eq. 5, without
    alpha_t). `live`: whether u^gamma has a gradient."""
    ce = cross_entropy(x, t * (1 - smoothing) + smoothing / 2, (1 - t) * (1 - smoothing) + smoothing / 2)
    if holds(gamma == 0, unknown=False):
        return ce
    p, q = sigmoids(x)
    u = p * (1 - t) + q * t
    # A smoothed label's cross entropy grows on the winning side too, so there p^gamma is needed beyond the limit.
    modulator = modulated(power(u, gamma, bounded(x, 1e30 if holds(smoothing != 0) else LIMIT), t), live)
    # An infinite cross entropy stays infinite where u^gamma underflows, but not where u is 0: smoothing on the winning
    # side.
    won = ce.isinf() & (u == 0)
    return torch.where(ce.isinf() & ~won, modulator.clamp(min=torch.finfo(x.dtype).tiny), modulator) * torch.where(
        won, 0.0, ce
    )

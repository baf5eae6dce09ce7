# Owns: the right answers: focal_ext.reference in float64, a second float64 closed form, and the textbook formula in 50 digits.
# Must not know: how far off an answer may be.
#
# Three derivations that check each other: the reference lets autograd differentiate, the closed form below is differentiated by hand,
# the textbook is Lin et al. 2017, eq. 5 as torchvision writes it, with as many digits as its cancellations need.
from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import torch
from cases import Call, Implementation
from torch import Tensor

import focal_ext


class Closed(NamedTuple):
    """Loss and gradient of one logit without alpha, weight and divisor, and the sum of the magnitudes of the gradient's terms."""

    loss: Tensor
    gradient: Tensor
    magnitude: Tensor


def hard(z: Tensor, gamma: float) -> Closed:
    """f(z) = p^g softplus(z) and f'(z) = p^g (g q softplus(z) + p) of float64 logits that should be low. No term cancels."""
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    softplus = z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))
    power = p.pow(gamma)
    gradient = power * (gamma * q * softplus + p)
    return Closed(power * softplus, gradient, gradient)


def soft(x: Tensor, t: Tensor, gamma: float) -> Closed:
    """u^g ce and its derivative u^g (g (1-2t) h ce + p (1-t) - q t), h = p q / u, of float64 logits and targets in [0, 1]."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    ce = torch.log1p(torch.exp(-x.abs())) + torch.where(x > 0, x * (1 - t), -x * t)
    u = p * (1 - t) + q * t
    h = torch.where(t == 0, q, torch.where(t == 1, p, p * q / u))
    bend = gamma * (1 - 2 * t) * h * ce
    power = u.pow(gamma)
    return Closed(power * ce, power * (bend + p * (1 - t) - q * t), power * (bend.abs() + p * (1 - t) + q * t))


class Expected(NamedTuple):
    loss: Tensor  # float64, as reduced
    gradient: Tensor
    loss_magnitude: Tensor  # sum of the magnitudes of what was added to the loss
    gradient_magnitude: Tensor  # the same for each logit's gradient
    is_soft: Tensor  # logits with a target other than 0 and 1
    factor: Tensor  # what multiplies the closed form's gradient


def factors(call: Call) -> tuple[Tensor, Tensor]:
    """Dense float64 targets of a call in float64, and alpha_t times weight, 0 where the row is ignored."""
    x, options = call.inputs, call.options
    classes, ignored = x.shape[-1], options["ignore_index"]
    if call.targets.dim() == x.dim():
        t, kept = call.targets, torch.ones_like(x)
    else:
        ids = call.targets.to(torch.int64)[..., None]
        kept = torch.ones_like(x) * (1.0 if ignored is None else (ids != ignored).double())
        t = (ids == torch.arange(classes)).double() * kept
    alpha = options["alpha"]
    if alpha is None or (not isinstance(alpha, Tensor) and alpha == -1):
        alpha_t = torch.ones_like(x)
    else:
        alpha_t = alpha * t + (1 - alpha) * (1 - t)
    weight = options["weight"]
    return t, alpha_t * kept * (1.0 if weight is None else weight)


def expected(call: Call, loss: str) -> Expected:
    """What a call must return, from the reference in float64, and how much was added up on the way, from the closed form."""
    exact = call.in_float64()
    value, gradient = exact.run(Implementation("reference", focal_ext.reference), loss)
    t, factor = factors(exact)
    closed = soft(exact.inputs, t, exact.options["gamma"])
    each = (factor * closed.loss).abs()
    magnitude = each if value.shape == each.shape else each.sum() * (value / (factor * closed.loss).sum()).nan_to_num(1.0)
    divisor = 1.0 if value.shape == each.shape else ((factor * closed.loss).sum() / value).nan_to_num(1.0)
    factor = factor.abs() * exact.upstream.abs() / divisor
    return Expected(value, gradient, magnitude, closed.magnitude * factor, (t > 0) & (t < 1), factor)


def textbook(x: Any, t: Any, alpha: Any, gamma: Any) -> Any:
    """alpha_t (1 - p_t)^gamma CE with p_t = p t + (1-p) (1-t) and CE = -t log p - (1-t) log(1-p), in mpmath's precision."""
    p = 1 / (1 + mpmath.exp(-x))
    ce = -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return alpha_t * (1 - p_t) ** gamma * ce


def textbook_point(x: float, t: float, alpha: float | None, gamma: float) -> tuple[float, float]:
    """Loss and derivative with 50 good digits: 1 - p and 1 - p_t lose one digit for each of the logit's decades, so they get as many more."""
    with mpmath.workdps(120 + 2 * int(abs(x))):
        point, *rest = (None if value is None else mpmath.mpf(value) for value in (x, t, alpha, gamma))
        return float(textbook(point, *rest)), float(mpmath.diff(lambda z: textbook(z, *rest), point, h=mpmath.mpf(10) ** -40))

# Owns: every loss a second time, differentiated by hand in float64, and a third time as the papers print it, in mpmath's precision.
# Must not know: tensors' layouts, reductions, weights, how far off an answer may be.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import mpmath
import torch
from torch import Tensor

# Nearer to a kink than this share of the terms, rounding decides on which side a float32 falls, and either derivative is right.
NEAR = 2.0**-16
ANY = 1e30  # the magnitude of a gradient there


class Closed(NamedTuple):
    """Loss and gradient of one logit without alpha, weight and divisor, and the sum of the magnitudes of the gradient's terms."""

    loss: Tensor
    gradient: Tensor
    magnitude: Tensor
    loss_magnitude: Tensor | None = None  # where terms of the loss cancel; None: they do not


def hard(z: Tensor, gamma: float) -> Closed:
    """f(z) = p^g softplus(z) and f'(z) = p^g (g q softplus(z) + p) of float64 logits that should be low. No term cancels."""
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    softplus = z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))
    power = p.pow(gamma)
    gradient = power * (gamma * q * softplus + p)
    return Closed(power * softplus, gradient, gradient)


def entropy(x: Tensor, t: Tensor, rest: Tensor) -> Tensor:
    """`rest` is 1 - t, which may be known better than that."""
    return torch.log1p(torch.exp(-x.abs())) + torch.where(x > 0, x * rest, -x * t)


def soft(x: Tensor, t: Tensor, gamma: float, label_smoothing: float = 0.0) -> Closed:
    """u^g ce and its derivative u^g (g (1-2t) h ce + p (1-t) - q t), h = p q / u, of float64 logits and targets in [0, 1]; smoothing
    moves the targets of ce and of its derivative."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    half, kept = label_smoothing / 2, 1 - label_smoothing
    moved, rest = t * kept + half, (1 - t) * kept + half  # of 1 - moved a smoothing below 2^-53 would be lost
    ce = entropy(x, moved, rest)
    u = p * (1 - t) + q * t
    h = torch.where(t == 0, q, torch.where(t == 1, p, p * q / u))
    bend = gamma * (1 - 2 * t) * h * ce
    power = u.pow(gamma)
    slope, terms = p * rest - q * moved, p * rest + q * moved
    return Closed(power * ce, power * (bend + slope), power * (bend.abs() + terms))


def quality(x: Tensor, t: Tensor, beta: float) -> Closed:
    """|d|^b ce and |d|^(b-1) sign(d) (d^2 + b p q ce) with d = p (1-t) - q t, which cancels near p = t: there the kink is."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    d, terms, ce = p * (1 - t) - q * t, p * (1 - t) + q * t, entropy(x, t, 1 - t)
    size, about = d.abs(), d.abs() + NEAR / 16 * terms
    power, bend = size.pow(beta - 1), d * d + beta * p * q * ce
    loss, gradient = power * size * ce, power * d.sign() * bend
    magnitude = power * (bend + 2 * size * terms) + (beta - 1) * about.pow(beta - 2) * terms * bend
    if beta < 2:
        magnitude = torch.where(size <= NEAR * terms, ANY, magnitude)
    return Closed(loss, gradient, magnitude, loss + beta * about.pow(beta - 1) * terms * ce)


def varifocal(x: Tensor, t: Tensor, gamma: float) -> Closed:
    """t ce with the derivative t (p (1-t) - q t) where t > 0, else the focal loss of a negative."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    low, ce, scored = hard(x, gamma), entropy(x, t, 1 - t), t > 0
    gradient = torch.where(scored, t * (p * (1 - t) - q * t), low.gradient)
    return Closed(torch.where(scored, t * ce, low.loss), gradient, torch.where(scored, t * (p * (1 - t) + q * t), low.magnitude))


def shifted(x: Tensor, gamma: float, clip: float) -> Closed:
    """-u^g log(1-u) and p q u^g (g R + 1/(1-u)), R = -log(1-u) / u, of u = max(p - clip, 0), which cancels near p = clip."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    u, rest = (p - clip).clamp(min=0), q + clip
    minus_log = torch.where(u < 0.5, -torch.log1p(-u), -torch.log(rest))
    power, counts = u.pow(gamma), u > 0
    loss = torch.where(counts, power * minus_log, 0.0)
    gradient = torch.where(counts, p * q * power * (gamma * minus_log / u.where(counts, 1.0) + 1 / rest), 0.0)
    about = u + NEAR / 16 * (p + clip)
    lost = (p + clip) / about  # of u's digits
    magnitude = p * q * about.pow(gamma) * (gamma * 2 + 1) / rest * (1 + (gamma + 1) * lost)
    if gamma < 1:
        magnitude = torch.where((p - clip).abs() <= NEAR * (p + clip), ANY, magnitude)
    return Closed(loss, gradient, magnitude, loss + (gamma + 2) * about.pow(gamma) * (p + clip) / rest)


def asymmetric(x: Tensor, t: Tensor, gamma_neg: float, gamma_pos: float, clip: float | None) -> Closed:
    """t f+ + (1-t) f-: the focal losses of a positive and of a negative, each with its own exponent, f- of the shifted probability."""
    high, low = hard(-x, gamma_pos), shifted(x, gamma_neg, clip) if clip else hard(x, gamma_neg)
    low_terms = low.loss if low.loss_magnitude is None else low.loss_magnitude
    parts = ((high.loss, low.loss), (-high.gradient, low.gradient), (high.magnitude, low.magnitude), (high.loss, low_terms))
    return Closed(*(torch.where(t == 0, 0.0, t * a) + torch.where(t == 1, 0.0, (1 - t) * b) for a, b in parts))


def asymmetric_terms(x: Tensor, t: Tensor, options: dict[str, Any]) -> Closed:
    return asymmetric(x, t, options["gamma_neg"], options["gamma_pos"], options["clip"])


CLOSED: dict[str, Callable[[Tensor, Tensor, dict[str, Any]], Closed]] = {
    "sigmoid_focal_loss": lambda x, t, options: soft(x, t, options["gamma"], options.get("label_smoothing", 0.0)),
    "quality_focal_loss": lambda x, t, options: quality(x, t, options["beta"]),
    "varifocal_loss": lambda x, t, options: varifocal(x, t, options["gamma"]),
    "asymmetric_loss": asymmetric_terms,
}


def factor_of(loss: str, t: Tensor, alpha: Any) -> Tensor:
    """What multiplies the closed form besides the weight."""
    if loss == "varifocal_loss":
        return torch.where(t > 0, torch.ones_like(t), alpha)  # of two numbers torch makes float32
    if alpha is None or (not isinstance(alpha, Tensor) and alpha == -1):
        return torch.ones_like(t)
    return alpha * t + (1 - alpha) * (1 - t)


def _focal(x: Any, t: Any, gamma: Any, alpha: Any = None, label_smoothing: Any = 0) -> Any:
    """Lin et al. 2017, eq. 5, as torchvision writes it; smoothing as apex: of the cross entropy's target alone."""
    p = 1 / (1 + mpmath.exp(-x))
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return alpha_t * (1 - p_t) ** gamma * _entropy(p, t * (1 - label_smoothing) + label_smoothing / 2)


def _entropy(p: Any, t: Any) -> Any:
    return -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)


def _quality(x: Any, t: Any, beta: Any) -> Any:
    """Li et al. 2020, eq. 4."""
    p = 1 / (1 + mpmath.exp(-x))
    return abs(t - p) ** beta * _entropy(p, t)


def _varifocal(x: Any, t: Any, gamma: Any, alpha: Any) -> Any:
    """Zhang et al. 2021, eq. 2."""
    p = 1 / (1 + mpmath.exp(-x))
    return t * _entropy(p, t) if t > 0 else -alpha * p**gamma * mpmath.log(1 - p)


def _asymmetric(x: Any, t: Any, gamma_neg: Any, gamma_pos: Any, clip: Any) -> Any:
    """Ridnik et al. 2021, eq. 4, 5 and 7."""
    p = 1 / (1 + mpmath.exp(-x))
    shifted_p = max(p - (clip or 0), mpmath.mpf(0))
    return -t * (1 - p) ** gamma_pos * mpmath.log(p) - (1 - t) * shifted_p**gamma_neg * mpmath.log(1 - shifted_p)


TEXTBOOK = {"sigmoid_focal_loss": _focal, "quality_focal_loss": _quality, "varifocal_loss": _varifocal, "asymmetric_loss": _asymmetric}


def textbook_point(loss: str, x: float, t: float, **parameters: float | None) -> tuple[float, float]:
    """Loss and derivative with 50 good digits: 1 - p and 1 - p_t lose one digit for each of the logit's decades, so they get as many more."""
    with mpmath.workdps(120 + 2 * int(abs(x))):
        point, target = mpmath.mpf(x), mpmath.mpf(t)
        exact = {name: None if value is None else mpmath.mpf(value) for name, value in parameters.items()}
        slope = mpmath.diff(lambda z: TEXTBOOK[loss](z, target, **exact), point, h=mpmath.mpf(10) ** -40)
        return float(TEXTBOOK[loss](point, target, **exact)), float(slope)

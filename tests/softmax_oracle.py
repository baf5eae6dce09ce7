# Owns: the right answers for the softmax focal loss: a float64 closed form differentiated by hand, and the textbook in
# 50 digits.
# Must not know: how the library computes, how far off an answer may be.
from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import torch
from cases import Call
from torch import Tensor


class Expected(NamedTuple):
    loss: Tensor  # float64, as reduced
    gradient: Tensor
    loss_magnitude: Tensor
    gradient_magnitude: Tensor  # sum of the magnitudes of each gradient's two or three terms


def others(e: Tensor) -> Tensor:
    """For each class the sum of all other entries of its row, added up as such."""
    classes = e.shape[-1]
    if classes > 400:  # outside, inclusive sums from the left and from the right
        left, right = e.cumsum(-1), e.flip(-1).cumsum(-1).flip(-1)
        return torch.nn.functional.pad(left, (1, 0))[:, :-1] + torch.nn.functional.pad(right, (0, 1))[:, 1:]
    return torch.stack([torch.cat([e[:, :c], e[:, c + 1 :]], -1).sum(-1) for c in range(classes)], -1) if classes else e


def closed(x: Tensor, t: Tensor, factor: Tensor, gamma: float, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each row of float64 logits, its gradient, and the magnitude of the gradient's terms; `factor` is alpha_c
    t_c.

    sum_c factor_c u_c^g L_c has the derivative p_j sum_{c != j} B_c - B_j u_j with B_c = factor_c u_c^g (1 + g p_c L_c
    / u_c).
    """
    if x.shape[-1] == 0:
        return x.sum(-1), x, x
    e = torch.exp(x - x.amax(-1, keepdim=True))
    rest = others(e)
    p, u = e / (e + rest), rest / (e + rest)
    entropy = torch.log1p(rest / e)
    power = u.pow(gamma)
    ratio = torch.where(u == 0, 1.0, entropy / u)
    if smoothing:
        label = factor.abs().cumsum(-1).gt(0) & t.gt(0)  # the class id; nothing where alpha is 0
        alpha, pick = factor.sum(-1, keepdim=True), lambda v: torch.where(label, v, 0.0).sum(-1, keepdim=True)
        smoothed = t * (1 - smoothing) + smoothing / x.shape[-1]
        total = (smoothed * entropy).sum(-1, keepdim=True)
        share = torch.where(label, 0.0, e) / pick(rest).clamp(min=1e-300)
        bend = gamma * pick(p) * total
        up = p * (1 - smoothed) + bend * share * ~label
        down = u * smoothed + bend * label
        factor = alpha * pick(power)
        return (factor * total)[:, 0], factor * (up - down), factor.abs() * (up + down)
    b = factor * power * (1 + gamma * p * ratio)
    up, down = p * others(b), b * u
    return (factor * power * entropy).sum(-1), up - down, up.abs() + down.abs()


def expected(call: Call) -> Expected:
    exact = call.in_float64()
    options, classes = exact.options, exact.inputs.shape[-1]
    x = exact.inputs.reshape(exact.inputs.shape[:-1].numel(), classes)
    rows = len(x)
    if exact.targets.dim() == exact.inputs.dim():
        t, kept = exact.targets.reshape(x.shape), torch.ones(rows, dtype=torch.float64)
        if options["ignore_index"] is not None:
            kept = (t != options["ignore_index"]).all(-1).double()
            t = t * kept[:, None]
    else:
        ids = exact.targets.reshape(-1).long()
        kept = torch.ones(rows, dtype=torch.float64) * (
            1.0 if options["ignore_index"] is None else (ids != options["ignore_index"]).double()
        )
        t = (ids[:, None] == torch.arange(classes)).double() * kept[:, None]
    alpha = options["alpha"]
    alpha = 1.0 if alpha is None or (not isinstance(alpha, Tensor) and alpha == -1) else alpha
    loss, gradient, magnitude = closed(x, t, alpha * t, options["gamma"], options["label_smoothing"])
    weight = kept if options["weight"] is None else kept * options["weight"].expand(exact.inputs.shape[:-1]).reshape(-1)
    loss, divisor = loss * weight, 1.0
    if options["reduction"] == "mean" or options["normalizer"] == "positives":
        divisor = kept.sum().clamp(min=1)
    elif options["normalizer"] is not None:
        divisor = options["normalizer"]
    upstream = (exact.upstream.reshape(-1) if options["reduction"] == "none" else torch.ones(rows)) * weight / divisor
    gradient, magnitude = (v * factor[:, None] for v, factor in ((gradient, upstream), (magnitude, upstream.abs())))
    reduced = loss.reshape(exact.inputs.shape[:-1]) if options["reduction"] == "none" else loss.sum() / divisor
    size = reduced.abs() if options["reduction"] == "none" else loss.abs().sum() / divisor
    return Expected(reduced, gradient.reshape(exact.inputs.shape), size, magnitude.reshape(exact.inputs.shape))


def textbook(x: list[Any], t: list[Any], gamma: Any) -> Any:
    """sum_c t_c (1 - p_c)^gamma (-log p_c) in mpmath's precision, p = exp(x) / sum exp(x)."""
    total = mpmath.fsum(mpmath.exp(v) for v in x)
    p = [mpmath.exp(v) / total for v in x]
    return mpmath.fsum(s * (1 - q) ** gamma * -mpmath.log(q) for s, q in zip(t, p) if s)


def textbook_point(x: list[float], t: list[float], gamma: float) -> tuple[float, list[float]]:
    """Loss and gradient with 30 good digits: 1 - p loses one for each decade of the largest difference."""
    with mpmath.workdps(150):
        point, target, power = [mpmath.mpf(v) for v in x], [mpmath.mpf(v) for v in t], mpmath.mpf(gamma)
        moved = lambda j, v: textbook([*point[:j], v, *point[j + 1 :]], target, power)  # noqa: E731
        slopes = [mpmath.diff(lambda v, j=j: moved(j, v), point[j], h=mpmath.mpf(10) ** -50) for j in range(len(x))]
        return float(textbook(point, target, power)), [float(s) for s in slopes]

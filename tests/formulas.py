# Owns: every loss a second time, differentiated by hand in float64, and a third time as the papers print it, in
# mpmath's precision.
# Must not know: any one loss, tensors' layouts, reductions, weights, how far off an answer may be.
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mpmath
import torch
from losses import DECLARED
from losses.parts import ANY, NEAR, Closed, hard
from losses.sigmoid_focal import soft
from torch import Tensor

__all__ = ["ANY", "NEAR", "Closed", "hard", "soft"]


def complete(loss: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with the defaults of those that are missing."""
    return {**{name: values[0] for name, values in DECLARED[loss].parameters.items()}, **options}


def closed(loss: str, x: Tensor, t: Tensor, options: Mapping[str, Any], named: Tensor | None = None) -> Closed:
    """Loss, gradient and their terms without alpha; `named`: the classes that class ids name, whose score may be 0."""
    return DECLARED[loss].closed(x, t, t > 0 if named is None else named, complete(loss, options))


def factor_of(loss: str, t: Tensor, alpha: Any, named: Tensor | None = None) -> Tensor:
    """What multiplies the closed form besides the weight."""
    spec = DECLARED[loss].spec
    if spec.alpha is None or alpha is None or (not isinstance(alpha, Tensor) and alpha == -1):
        return torch.ones_like(t)
    if spec.splits:
        # of two numbers torch makes float32
        return torch.where(t > 0 if named is None else named, torch.ones_like(t), alpha)
    return alpha * t + (1 - alpha) * (1 - t)


def textbook_point(loss: str, x: float, t: float, **parameters: Any) -> tuple[float, float]:
    """Loss and derivative with 50 good digits: 1 - p and 1 - p_t lose 0.43 digits for each unit of the logit, so they
    get half a digit more. mpmath differentiates with twice as many, of which the step takes 40."""
    textbook = DECLARED[loss].textbook
    with mpmath.workdps(60 + int(abs(x)) // 2):
        point, target = mpmath.mpf(x), mpmath.mpf(t)
        exact = {
            name: value if value is None or isinstance(value, bool) else mpmath.mpf(value)
            for name, value in parameters.items()
        }
        slope = mpmath.diff(lambda z: textbook(z, point, target, **exact), point, h=mpmath.mpf(10) ** -40)
        return float(textbook(point, point, target, **exact)), float(slope)

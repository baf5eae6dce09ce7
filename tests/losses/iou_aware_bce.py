# Owns: what the tests know of the IoU-aware cross entropy.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

import mpmath
import torch
from torch import Tensor

from .parts import (
    GAMMAS,
    SCORE,
    Closed,
    Declared,
    Options,
    chosen,
    cross_entropy,
    grid,
    hard,
    limit_of,
    share_of,
    sigmoid,
    textbook_entropy,
)

LEAST = 0.01


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """ce with the target max(p^a t^(1-a), 0.01) of positives, which has no gradient, the focal loss of negatives.
    Roundings of p and t move the target."""
    alpha = options["alpha"]
    scored = torch.where(positive, t, 1.0)
    log_p = torch.where(x > 0, 0.0, x) - torch.log1p(torch.exp(-x.abs()))
    log_score = torch.log(scored.where(scored > 0, 1.0))
    product = torch.exp(alpha * log_p) * scored.pow(1 - alpha)
    rest = torch.where(scored > 0, -torch.expm1(alpha * log_p + (1 - alpha) * log_score), 1 - product)
    target, rest = product.clamp(min=LEAST), rest.clamp(max=1 - LEAST)
    return chosen(positive, cross_entropy(x, target, rest, target), hard(x, options["gamma"]))


def textbook(x: Any, y: Any, t: Any, alpha: Any, gamma: Any) -> Any:
    """LW-DETR's code, after Cai et al. 2023, "Align-DETR"."""
    p = sigmoid(x)
    return (
        textbook_entropy(p, max(sigmoid(y) ** alpha * t ** (1 - alpha), mpmath.mpf(LEAST)))
        if t > 0
        else p**gamma * textbook_entropy(p, 0)
    )


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    alpha = options["alpha"]
    of_p = 1.0 if x > 0 or alpha == 0 else mpmath.exp(mpmath.mpf(alpha) * x)
    target = max(float(of_p) * t ** (1 - alpha), LEAST)
    return (
        limit_of(x, 1.0, share_of(x, target))
        if t > 0
        else limit_of(x, share_of(x, t) ** options["gamma"], share_of(x, t))
    )


LOSS = Declared(
    name="iou_aware_bce_loss",
    parameters={"alpha": (0.25, 0.0, 0.5, 1.0), "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0)},
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[
        *grid(alpha=(0.25, 0.9), gamma=(0.0, 0.5, 2.0)),
        {"alpha": 0.0, "gamma": 2.0},
        {"alpha": 0.5, "gamma": 1.7},
    ],
    kernels={"IoU-aware": {"alpha": 0.25, "gamma": 2.0}, "IoU-aware, gamma 1.7": {"alpha": 0.5, "gamma": 1.7}},
    has_constant=True,
    members={"IoU-aware": {}, "IoU-aware 1.7": {"alpha": 0.5, "gamma": 1.7}},
    curves=[
        *((0.0, {"alpha": 0.25, "gamma": gamma}) for gamma in GAMMAS),
        *((t, {"alpha": alpha, "gamma": 2.0}) for alpha in (0.25, 0.5) for t in (SCORE,)),
    ],
    drawn={"alpha": "fraction", "gamma": "exponent"},
    unused=lambda target: {"gamma"} if target else {"alpha"},
)

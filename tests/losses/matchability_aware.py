# Owns: what the tests know of the matchability-aware loss.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import (
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


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """ce with the target t^g of positives, p^g ce with the derivative p^g p of negatives. Rounding t moves the target
    by g t^g units."""
    gamma = options["gamma"]
    scored = torch.where(positive, t, 1.0)
    target = scored.pow(gamma)
    rest = torch.where(scored > 0, -torch.expm1(gamma * torch.log(scored.where(scored > 0, 1.0))), 1 - target)
    return chosen(positive, cross_entropy(x, target, rest, gamma * target), hard(x, gamma, 0.0))


def textbook(x: Any, y: Any, t: Any, gamma: Any, alpha: Any = None) -> Any:
    """Huang et al. 2025, "DEIM", eq. 3."""
    if t > 0:
        return textbook_entropy(sigmoid(x), t**gamma)
    return (1 if alpha is None else alpha) * sigmoid(y) ** gamma * textbook_entropy(sigmoid(x), 0)


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    gamma = options["gamma"]
    return limit_of(x, 1.0, share_of(x, t**gamma)) if t > 0 else limit_of(x, share_of(x, t) ** gamma, share_of(x, t))


LOSS = Declared(
    name="matchability_aware_loss",
    parameters={"gamma": (1.5, 2.0, 0.0, 0.5, 1.0, 5.0), "alpha": (None, 0.0, 0.3)},
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=grid(gamma=(0.0, 0.5, 1.0, 1.5, 2.0, 5.0), alpha=(None, 0.75)),
    kernels={
        "matchability-aware": {"gamma": 1.5, "alpha": None},
        "matchability-aware, gamma 2": {"gamma": 2.0, "alpha": 0.3},
    },
    has_constant=True,
    members={"matchability-aware": {}, "matchability-aware 2": {"gamma": 2.0, "alpha": 0.3}},
    curves=[(t, {"gamma": gamma}) for gamma in (0.5, 1.0, 1.5, 2.0) for t in (0.0, SCORE)],
    drawn={"gamma": "exponent", "alpha": "fraction or None"},
)

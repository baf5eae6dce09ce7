# Owns: what the tests know of the Gaussian focal loss.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import GAMMAS, SCORE, Closed, Declared, Options, grid, hard, limit_of, sigmoid, textbook_entropy


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """The focal loss of a positive where t is 1, (1-t)^b times that of a negative elsewhere."""
    high, low, weight = hard(-x, options["alpha"]), hard(x, options["alpha"]), (1 - t).pow(options["beta"])
    parts = ((high.loss, low.loss), (-high.gradient, low.gradient), (high.magnitude, low.magnitude))
    return Closed(*(torch.where(t == 1, a, weight * b) for a, b in parts))


def textbook(x: Any, y: Any, t: Any, alpha: Any, beta: Any) -> Any:
    """Law and Deng 2018, "CornerNet", eq. 1."""
    p = sigmoid(x)
    return (1 - p) ** alpha * textbook_entropy(p, 1) if t == 1 else (1 - t) ** beta * p**alpha * textbook_entropy(p, 0)


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    power = 0.0 if (x < 0) == (t != 1) else 1.0  # p or 1 - p, which is exact
    return limit_of(x, power ** options["alpha"] * (1.0 if t == 1 else (1 - t) ** options["beta"]), power)


LOSS = Declared(
    name="gaussian_focal_loss",
    parameters={"alpha": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0), "beta": (4.0, 0.0, 0.5, 1.0, 2.0)},
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[*grid(alpha=(0.0, 0.5, 2.0), beta=(0.0, 4.0)), {"alpha": 1.7, "beta": 0.5}],
    kernels={"Gaussian focal": {"alpha": 2.0, "beta": 4.0}, "Gaussian focal, 1.7 and 0.5": {"alpha": 1.7, "beta": 0.5}},
    members={"Gaussian focal": {}, "Gaussian focal 1.7": {"alpha": 1.7, "beta": 0.5}},
    curves=[
        *((t, {"alpha": alpha, "beta": 4.0}) for alpha in GAMMAS for t in (0.0, 1.0)),
        *((SCORE, {"alpha": 2.0, "beta": beta}) for beta in (0.5, 4.0)),
    ],
    drawn={"alpha": "exponent", "beta": "exponent"},
    unused=lambda target: set() if 0 < target < 1 else {"beta"},
    axes={
        "targets": (
            "dense soft",
            "dense float32",
            "dense near 1",
            "dense 0/1",
            "dense bool",
            "dense int64",
            "ids int64",
            "ids rare",
            "pair int64",
        )
    },
)

# Owns: what the tests know of the varifocal loss.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

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
    slope_of,
    textbook_entropy,
)


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """t ce with the derivative t (p (1-t) - q t) of positives, else the focal loss of a negative."""
    own = Closed(*(None if part is None else t * part for part in cross_entropy(x, t, 1 - t)))
    return chosen(positive, own, hard(x, options["gamma"], slope_of(options["gamma"], options)))


def textbook(x: Any, y: Any, t: Any, gamma: Any, alpha: Any, modulator_gradient: bool = True) -> Any:
    """Zhang et al. 2021, eq. 2."""
    p = sigmoid(x)
    return (
        t * textbook_entropy(p, t)
        if t > 0
        else alpha * sigmoid(x if modulator_gradient else y) ** gamma * textbook_entropy(p, 0)
    )


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    share = share_of(x, t)
    return limit_of(x, t if t > 0 else share ** options["gamma"], share)


LOSS = Declared(
    name="varifocal_loss",
    parameters={
        "alpha": (0.75, 0.0, 1.0, 0.3),
        "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0),
        "modulator_gradient": (True, False),
    },
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[
        *grid(gamma=(0.0, 0.5, 2.0), alpha=(0.75, 0.0)),
        *grid(gamma=(0.5, 1.7, 2.0), alpha=(0.75,), modulator_gradient=(False,)),
    ],
    kernels={
        "varifocal": {"gamma": 2.0, "alpha": 0.75},
        "varifocal, constant modulator": {"gamma": 2.0, "alpha": 0.75, "modulator_gradient": False},
        "varifocal, gamma 1.7": {"gamma": 1.7, "alpha": 0.3},
        "varifocal, alpha 0": {"gamma": 2.0, "alpha": 0.0},
    },
    members={"varifocal": {}, "varifocal 0.5": {"gamma": 0.5, "alpha": 0.3, "modulator_gradient": False}},
    curves=[*((0.0, {"gamma": gamma}) for gamma in GAMMAS), *((t, {"gamma": 2.0}) for t in (SCORE, 1.0))],
    drawn={"gamma": "exponent", "alpha": "fraction", "modulator_gradient": "flag"},
    unused=lambda target: {"gamma"} if target else set(),
)

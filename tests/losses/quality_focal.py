# Owns: what the tests know of the quality focal loss.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import (
    ANY,
    NEAR,
    SCORE,
    Closed,
    Declared,
    Options,
    cross_entropy,
    entropy,
    grid,
    limit_of,
    share_of,
    sigmoid,
    slope_of,
    textbook_entropy,
)


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """|d|^b ce and |d|^(b-1) sign(d) (d^2 + b p q ce) with d = p (1-t) - q t, which cancels near p = t: there the kink
    is."""
    beta = options["beta"]
    slope = slope_of(beta, options)
    if beta == 0:
        return cross_entropy(x, t, 1 - t)
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    d, terms, ce = p * (1 - t) - q * t, p * (1 - t) + q * t, entropy(x, t, 1 - t)
    size, about = d.abs(), d.abs() + NEAR / 16 * terms
    power, bend = size.pow(beta - 1), d * d + slope * p * q * ce
    loss, gradient = power * size * ce, power * d.sign() * bend
    magnitude = power * (bend + 2 * size * terms) + (beta - 1) * about.pow(beta - 2) * terms * bend
    if beta < 2 and slope:
        magnitude = torch.where(size <= NEAR * terms, ANY, magnitude)
    return Closed(loss, gradient, magnitude, loss + beta * about.pow(beta - 1) * terms * ce)


def textbook(x: Any, y: Any, t: Any, beta: Any, modulator_gradient: bool = True) -> Any:
    """Li et al. 2020, eq. 4."""
    return abs(t - sigmoid(x if modulator_gradient else y)) ** beta * textbook_entropy(sigmoid(x), t)


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    share = share_of(x, t)
    return limit_of(x, share ** options["beta"], share)


LOSS = Declared(
    name="quality_focal_loss",
    parameters={"beta": (2.0, 1.0, 1.5, 3.0, 5.0, 0.0), "modulator_gradient": (True, False)},
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[*grid(beta=(1.0, 1.5, 2.0, 5.0), modulator_gradient=(True, False)), {"beta": 0.0}],
    kernels={
        "quality focal": {"beta": 2.0},
        "quality focal, beta 1": {"beta": 1.0},
        "quality focal, beta 1.5": {"beta": 1.5, "modulator_gradient": False},
        "quality focal, beta 0": {"beta": 0.0},
        "quality focal, steep": {"beta": 20.0},
    },
    members={"quality focal": {}, "quality focal 1.5": {"beta": 1.5}},
    curves=[(t, {"beta": beta}) for beta in (1.0, 1.5, 2.0, 3.0, 5.0) for t in (0.0, SCORE, 1.0)],
    drawn={"beta": "exponent from 1", "modulator_gradient": "flag"},
)

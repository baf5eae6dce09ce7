# Owns: what the tests know of the asymmetric loss.
# Must not know: which tests ask.
from __future__ import annotations

import math
from typing import Any

import mpmath
import torch
from torch import Tensor

from .parts import ANY, NEAR, Closed, Declared, Options, hard, share_of, sigmoid, slope_of


def shifted(x: Tensor, gamma: float, clip: float, slope: float) -> Closed:
    """-u^g log(1-u) and p q u^g (g R + 1/(1-u)), R = -log(1-u) / u, of u = max(p - clip, 0), which cancels near p =
    clip."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    u, rest = (p - clip).clamp(min=0), q + clip
    minus_log = torch.where(u < 0.5, -torch.log1p(-u), -torch.log(rest))
    power, counts = u.pow(gamma), u > 0
    loss = torch.where(counts, power * minus_log, 0.0)
    gradient = torch.where(counts, p * q * power * (slope * minus_log / u.where(counts, 1.0) + 1 / rest), 0.0)
    about = u + NEAR / 16 * (p + clip)
    lost = (p + clip) / about  # of u's digits
    magnitude = p * q * about.pow(gamma) * (gamma * 2 + 1) / rest * (1 + (gamma + 1) * lost)
    if gamma < 1:
        magnitude = torch.where((p - clip).abs() <= NEAR * (p + clip), ANY, magnitude)
    return Closed(loss, gradient, magnitude, loss + (gamma + 2) * about.pow(gamma) * (p + clip) / rest)


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    """t f+ + (1-t) f-: the focal losses of a positive and of a negative, each with its own exponent, f- of the shifted
    probability."""
    gamma, clip = options["gamma_neg"], options["clip"]
    high, slope = hard(-x, options["gamma_pos"], slope_of(options["gamma_pos"], options)), slope_of(gamma, options)
    low = shifted(x, gamma, clip, slope) if clip else hard(x, gamma, slope)
    low_terms = low.loss if low.loss_magnitude is None else low.loss_magnitude
    parts = (
        (high.loss, low.loss),
        (-high.gradient, low.gradient),
        (high.magnitude, low.magnitude),
        (high.loss, low_terms),
    )
    return Closed(*(torch.where(t == 0, 0.0, t * a) + torch.where(t == 1, 0.0, (1 - t) * b) for a, b in parts))


def textbook(x: Any, y: Any, t: Any, gamma_neg: Any, gamma_pos: Any, clip: Any, modulator_gradient: bool = True) -> Any:
    """Ridnik et al. 2021, eq. 4, 5 and 7."""
    p, m = sigmoid(x), sigmoid(x if modulator_gradient else y)
    shifted_p, shifted_m = (max(probability - (clip or 0), mpmath.mpf(0)) for probability in (p, m))
    return -t * (1 - m) ** gamma_pos * mpmath.log(p) - (1 - t) * shifted_m**gamma_neg * mpmath.log(1 - shifted_p)


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    clip, share = options["clip"], share_of(x, t)
    if x < 0 or not clip:
        return (abs(x) * share if share else 0.0), math.copysign(share, x)
    return share * -((1 - clip) ** options["gamma_neg"]) * math.log(clip), 0.0


def numbers(gamma_neg: float, gamma_pos: float, clip: float | None, **more: Any) -> dict[str, Any]:
    return {"gamma_neg": gamma_neg, "gamma_pos": gamma_pos, "clip": clip, **more}


CONSTANT = {"modulator_gradient": False}
LOSS = Declared(
    name="asymmetric_loss",
    parameters={
        "gamma_neg": (4.0, 0.0, 0.5, 1.0, 2.0),
        "gamma_pos": (1.0, 0.0, 0.5, 2.0, 1.7),
        "clip": (0.05, None, 0.0, 1e-3, 0.5, 0.95),
        "modulator_gradient": (True, False),
    },
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[
        *(
            numbers(*n)
            for n in (
                (4.0, 1.0, 0.05),
                (0.0, 0.0, None),
                (0.5, 1.7, 0.9),
                (0.0, 2.0, 0.3),
                (4.0, 0.0, None),
                (1.0, 2.0, 0.0),
            )
        ),
        *(numbers(*n, **CONSTANT) for n in ((4.0, 1.0, 0.05), (0.5, 1.7, None))),
    ],
    kernels={
        "asymmetric": numbers(4.0, 1.0, 0.05),
        "asymmetric, constant modulators": numbers(4.0, 1.0, 0.05, **CONSTANT),
        "asymmetric, gamma 1.5 and 0": numbers(1.5, 0.0, 0.3),
        "asymmetric, gamma 0": numbers(0.0, 2.0, 0.05),
        "asymmetric, no clip": numbers(4.0, 1.0, None),
    },
    members={"asymmetric": {}, "asymmetric unclipped": numbers(1.7, 0.0, None, **CONSTANT)},
    curves=[
        *((0.0, numbers(gamma, 1.0, clip)) for clip in (0.05, None) for gamma in (0.0, 0.5, 1.0, 1.7, 2.0, 4.0)),
        *((1.0, numbers(4.0, gamma, 0.05)) for gamma in (0.0, 0.5, 1.0, 1.7, 2.0)),
    ],
    drawn={"gamma_neg": "exponent", "gamma_pos": "exponent", "clip": "clip", "modulator_gradient": "flag"},
    unused=lambda target: {"gamma_neg", "clip"} if target else {"gamma_pos"},
    axes={
        "targets": (
            "dense 0/1",
            "dense bool",
            "dense soft",
            "dense float32",
            "dense int64",
            "ids int64",
            "ids int32",
            "ids uint8",
            "ids rare",
            "pair int64",
        )
    },
)

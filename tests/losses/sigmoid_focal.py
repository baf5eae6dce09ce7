# Owns: what the tests know of the sigmoid focal loss.
# Must not know: which tests ask.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .parts import (
    GAMMAS,
    SCORE,
    Closed,
    Declared,
    Options,
    entropy,
    grid,
    limit_of,
    share_of,
    sigmoid,
    slope_of,
    textbook_entropy,
)

ID_DTYPES = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
SHAPES = (
    (7, 80),
    (137, 91),
    (600, 80),
    (5461, 3),
    (5462, 3),
    (33, 512),
    (2, 17, 80),
    (2, 3, 5, 7),
    (37,),
    (4, 1),
    (1, 1),
    (0, 80),
    (5, 0),
    (2, 0, 4),
)
LAYOUTS = (
    "contiguous",
    "unaligned",
    "rows permuted",
    "rows cycled",
    "classes slowest",
    "columns sliced",
    "every second row",
    "one row expanded",
)
WEIGHTS = (
    None,
    "classes",
    "rows",
    "full",
    "scalar",
    "first axis",
    "zeros",
    "classes strided",
    "classes expanded",
    "full strided",
)


def soft(x: Tensor, t: Tensor, gamma: float, label_smoothing: float = 0.0, slope: float | None = None) -> Closed:
    """u^g ce and its derivative u^g (g (1-2t) h ce + p (1-t) - q t), h = p q / u, of float64 logits and targets in [0,
    1]; smoothing moves the targets of ce and of its derivative."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    half, kept = label_smoothing / 2, 1 - label_smoothing
    moved, rest = t * kept + half, (1 - t) * kept + half  # of 1 - moved a smoothing below 2^-53 would be lost
    ce = entropy(x, moved, rest)
    u = p * (1 - t) + q * t
    h = torch.where(t == 0, q, torch.where(t == 1, p, p * q / u))
    bend = (gamma if slope is None else slope) * (1 - 2 * t) * h * ce
    power = u.pow(gamma)
    gradient, terms = p * rest - q * moved, p * rest + q * moved
    return Closed(power * ce, power * (bend + gradient), power * (bend.abs() + terms))


def closed(x: Tensor, t: Tensor, positive: Tensor, options: Options) -> Closed:
    return soft(x, t, options["gamma"], options.get("label_smoothing", 0.0), slope_of(options["gamma"], options))


def textbook(
    x: Any, y: Any, t: Any, gamma: Any, alpha: Any = None, label_smoothing: Any = 0, modulator_gradient: bool = True
) -> Any:
    """Lin et al. 2017, eq. 5, as torchvision writes it; smoothing as apex: of the cross entropy's target alone."""
    p, m = sigmoid(x), sigmoid(x if modulator_gradient else y)
    alpha_t = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return (
        alpha_t
        * (1 - (m * t + (1 - m) * (1 - t))) ** gamma
        * textbook_entropy(p, t * (1 - label_smoothing) + label_smoothing / 2)
    )


def limit(x: float, t: float, options: Options) -> tuple[float, float]:
    share, smoothing = share_of(x, t), options.get("label_smoothing", 0.0)
    return limit_of(x, share ** options["gamma"], share * (1 - smoothing) + smoothing / 2 if smoothing else share)


LOSS = Declared(
    name="sigmoid_focal_loss",
    parameters={
        "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0),
        "alpha": (0.25, None, -1, 0, 1, 0.999, "list", "tensor"),
        "label_smoothing": (0.0, 0.1, 1.0, 1e-6),
        "modulator_gradient": (True, False),
    },
    closed=closed,
    textbook=textbook,
    limit=limit,
    settings=[
        *grid(gamma=GAMMAS, alpha=(None, 0.25, 0.0, 1.0)),
        *grid(gamma=(0.0, 0.5, 1.0, 2.0), alpha=(0.25,), label_smoothing=(0.1, 1.0)),
        {"gamma": 1.7, "alpha": 0.25, "label_smoothing": 0.4},
        *grid(gamma=(0.5, 1.0, 2.0), alpha=(0.25,), label_smoothing=(0.0, 0.1), modulator_gradient=(False,)),
    ],
    kernels={
        "constant modulator": {"gamma": 2.0, "modulator_gradient": False},
        "constant modulator, gamma 1": {"gamma": 1.0, "modulator_gradient": False},
        "cross entropy": {"gamma": 0.0, "alpha": None},
        "focal, gamma 1.7": {"gamma": 1.7},
        "smoothed": {"gamma": 2.0, "label_smoothing": 0.1},
        "smoothed, gamma 1.5": {"gamma": 1.5, "label_smoothing": 0.1, "alpha": None},
        "smoothed, gamma 0.004": {"gamma": 0.004, "label_smoothing": 0.1},
        "smoothed, gamma 0": {"gamma": 0.0, "label_smoothing": 0.3},
        "smoothed, steep": {"gamma": 30.0, "label_smoothing": 0.1},
    },
    members={"sigmoid focal": {}, "smoothed": {"label_smoothing": 0.1}},
    curves=[
        *((t, {"gamma": gamma}) for gamma in GAMMAS for t in (0.0, 1.0)),
        *((SCORE, {"gamma": gamma}) for gamma in GAMMAS),
        *((t, {"gamma": 1.5}) for t in (0.0, 1.0, SCORE)),  # by a square root
        *((t, {"gamma": gamma, "label_smoothing": 0.1}) for gamma in GAMMAS for t in (0.0, 1.0)),
    ],
    drawn={"gamma": "exponent", "alpha": "alpha", "label_smoothing": "fraction", "modulator_gradient": "flag"},
    axes={
        "shape": SHAPES,
        "layout": LAYOUTS,
        "targets": (
            *(f"ids {d}" for d in ID_DTYPES),
            "ids rare",
            "dense soft",
            "dense float32",
            "dense 0/1",
            "dense bool",
            "dense uint8",
            "dense int64",
            "dense near 1",
            "pair int64",
        ),
        "weight": WEIGHTS,
        "ignore_index": (-2, -1, None, 0, 255),
        "upstream": ("ones", "half", "three", "map", "map transposed", "map of rows", "map of classes"),
    },
)

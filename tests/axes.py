# Owns: every axis a call of a loss can vary on; one value of each makes a row of the table of cases (cases.py).
# Must not know: tensors, how rows are chosen.
from __future__ import annotations

from typing import Any

Axes = dict[str, tuple[Any, ...]]

ID_DTYPES = ("int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64")
LAYOUTS = ("contiguous", "unaligned", "rows permuted", "rows cycled", "classes slowest", "columns sliced", "every second row", "one row expanded")
WEIGHTS = (None, "classes", "rows", "full", "scalar", "first axis", "zeros", "classes strided", "classes expanded", "full strided")
REDUCTIONS = ("none", "sum", "mean", "sum / float", "sum / tensor", "sum / positives")
UPSTREAMS = ("ones", "half", "three", "map", "map transposed", "map of rows", "map of classes")
DTYPES = ("float32", "bfloat16", "float16", "float64")

# What goes to the function under its own name; the rest becomes tensors.
PARAMETERS = ("gamma", "label_smoothing", "beta", "gamma_neg", "gamma_pos", "clip")

# The losses that share a loop with the first need not repeat what only the loop sees: fewer shapes, layouts and id types.
FEWER: Axes = {
    "shape": ((7, 80), (137, 91), (5461, 4), (2, 17, 80), (2, 3, 5, 7), (37,), (1, 1), (0, 80)),
    "dtype": DTYPES,
    "layout": ("contiguous", "unaligned", "rows permuted", "rows cycled", "classes slowest"),
    "weight": (None, "classes", "rows", "full", "zeros"),
    "reduction": REDUCTIONS,
    "ignore_index": (-2, None, 0),
    "upstream": ("ones", "half", "three", "map", "map of rows"),
}
DENSE = ("dense soft", "dense float32", "dense 0/1", "dense bool", "dense int64")
PAIRS = ("pair int64", "pair int32", "pair uint8", "pair uint64", "pair rare")

# The first value of each axis is the detector's everyday call.
AXES: dict[str, Axes] = {
    "sigmoid_focal_loss": {
        "shape": ((7, 80), (137, 91), (600, 80), (5461, 3), (5462, 3), (33, 512), (2, 17, 80), (2, 3, 5, 7), (37,), (4, 1), (1, 1), (0, 80), (5, 0), (2, 0, 4)),
        "dtype": DTYPES,
        "layout": LAYOUTS,
        "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0),
        "targets": (*(f"ids {d}" for d in ID_DTYPES), "ids rare", "dense soft", "dense float32", "dense 0/1", "dense bool", "dense uint8", "dense int64", "dense near 1"),
        "weight": WEIGHTS,
        "alpha": (0.25, None, -1, 0, 1, 0.999, "list", "tensor"),
        "reduction": REDUCTIONS,
        "ignore_index": (-2, -1, None, 0, 255),
        "upstream": UPSTREAMS,
        "label_smoothing": (0.0, 0.1, 1.0, 1e-6),
    },
    "quality_focal_loss": {**FEWER, "targets": (*PAIRS, *DENSE), "scores": ("float32", "float64", "bfloat16"), "beta": (2.0, 1.0, 1.5, 3.0, 5.0)},
    "varifocal_loss": {
        **FEWER,
        "targets": (*PAIRS, *DENSE),
        "scores": ("float32", "float64", "bfloat16"),
        "alpha": (0.75, 0.0, 1.0, 0.3),
        "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0),
    },
    "asymmetric_loss": {
        **FEWER,
        "targets": ("dense 0/1", "dense bool", "dense soft", "dense float32", "dense int64", "ids int64", "ids int32", "ids uint8", "ids rare"),
        "gamma_neg": (4.0, 0.0, 0.5, 1.0, 2.0),
        "gamma_pos": (1.0, 0.0, 0.5, 2.0, 1.7),
        "clip": (0.05, None, 0.0, 1e-3, 0.5, 0.95),
    },
}

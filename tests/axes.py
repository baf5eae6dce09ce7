# Owns: every axis a call of a loss can vary on; one value of each makes a row of the table of cases (cases.py).
# Must not know: tensors, how rows are chosen, any one loss.
from __future__ import annotations

from typing import Any

from losses import DECLARED
from losses.sigmoid_focal import ID_DTYPES, WEIGHTS

__all__ = ["ID_DTYPES", "WEIGHTS"]

Axes = dict[str, tuple[Any, ...]]

REDUCTIONS = ("none", "sum", "mean", "sum / float", "sum / tensor", "sum / positives")
DTYPES = ("float32", "bfloat16", "float16", "float64")
DENSE = ("dense soft", "dense float32", "dense 0/1", "dense bool", "dense int64")
PAIRS = ("pair int64", "pair int32", "pair uint8", "pair uint64", "pair rare")
SCORES = {"scores": ("float32", "float64", "bfloat16")}

# The losses that share a loop with the first need not repeat what only the loop sees: fewer shapes, layouts and id
# types. The first value of each axis is the everyday call.
FEWER: Axes = {
    "shape": ((7, 80), (137, 91), (5461, 4), (2, 17, 80), (2, 3, 5, 7), (37,), (1, 1), (0, 80)),
    "dtype": DTYPES,
    "layout": ("contiguous", "unaligned", "rows permuted", "rows cycled", "classes slowest"),
    "weight": (None, "classes", "rows", "full", "zeros"),
    "reduction": REDUCTIONS,
    "ignore_index": (-2, None, 0),
    "upstream": ("ones", "half", "three", "map", "map of rows"),
    "targets": (*PAIRS, *DENSE),
}

# What goes to the function under its own name; the rest becomes tensors.
PARAMETERS = tuple(dict.fromkeys(name for loss in DECLARED.values() for name in loss.parameters if name != "alpha"))
AXES: dict[str, Axes] = {name: {**FEWER, **SCORES, **loss.axes, **loss.parameters} for name, loss in DECLARED.items()}

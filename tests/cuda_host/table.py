# Owns: the rows that CUDA kernels need beside the table of cases, how far off they may be, and the check of one row.
# Must not know: how the kernels are run (ops.py), what the right answers are (oracle.py).
from __future__ import annotations

from itertools import cycle, product

import focal_ext
import torch
from cases import AXES, CASES, Call, Case, Implementation, build
from oracle import expected
from rounding import outside
from test_values import message, rounded_before_grad_output, slack
from tolerances import TOLERANCES, Tolerance

LOSS = "sigmoid_focal_loss"
GRIDS = (1, 3, 4096)
# Few logits are cut into tiles of 8, for as many warps as a chip has. One tile at least: all are as large as can be,
# 4096 logits; 40: between.
TILES_OF = {1: 1, 3: 40, 4096: 4096}

# Numbers of classes of known detectors, and 1. Of 41 rows the last tile has a part; of an odd number, a part of a
# vector.
CLASSES = (1, 3, 80, 90, 91, 365, 1203)
# Counting positives is a kernel of its own, the same for all: rows of 80 classes run it, others would take ten times as
# long by it.
FLOWS = {
    "loss and gradient": ("sum / float", "ones"),
    "loss map": ("none", "half"),
    "gradient times a map": ("none", "map"),
}
# What multiplies terms: one factor a row, an image, a class, and two of them.
FACTORS = (
    {"weight": "rows"},
    {"weight": "first axis"},
    {"weight": "classes"},
    {"alpha": "list"},
    {"weight": "first axis", "alpha": "list"},
    {"weight": "rows", "alpha": "list"},
)
# Rows enough for tiles of 16, 64 and 128 rows; a warp reads labels in more than one step from 64 on.
TALL = ((65_537, 3), (262_200, 1), (524_301, 1))


def row(**axes: object) -> Case:
    return Case(LOSS, tuple({**{axis: values[0] for axis, values in AXES[LOSS].items()}, **axes}.items()))


def stream_rows() -> list[Case]:
    """Tiles of negatives with a few others between them: every flow of the hot loop, type and number of classes."""
    gammas, rows = cycle((2.0, 1.7, 0.0, 1.0, 0.5)), []
    for classes, dtype, flow in product(CLASSES, AXES[LOSS]["dtype"], FLOWS):
        reduction, upstream = (
            FLOWS[flow] if (classes, flow) != (80, "loss and gradient") else ("sum / positives", "ones")
        )
        rows += [
            row(shape=(41, classes), dtype=dtype, targets=t, gamma=next(gammas), reduction=reduction, upstream=upstream)
            for t in ("ids rare", "dense soft")
        ]
    rows += [
        row(shape=(300, 80), dtype=dtype, targets=t, reduction="sum")
        for dtype in AXES[LOSS]["dtype"]
        for t in ("dense uint8", "dense float32")
    ]
    # the memory ends with a tile of negatives
    rows += [row(shape=(64, 80), dtype=dtype, targets="ids rare", reduction="sum") for dtype in AXES[LOSS]["dtype"]]
    rows += [row(shape=shape, dtype="bfloat16", targets="ids rare", reduction="mean") for shape in TALL]
    steep = product(AXES[LOSS]["dtype"], ("ids rare", "dense uint8"), FLOWS.values())  # a large gamma streams nowhere
    rows += [
        row(shape=(41, 91), dtype=dtype, targets=t, gamma=50.0, reduction=reduction, upstream=upstream)
        for dtype, t, (reduction, upstream) in steep
    ]
    gammas = cycle((2.0, 1.7, 0.0))
    # rows of one tile with one weight and with several
    for classes, dtype, factors in product(CLASSES, AXES[LOSS]["dtype"][:3], FACTORS):
        rows += [row(shape=(3, 17, classes), dtype=dtype, gamma=next(gammas), reduction="sum", **factors)]
    return [case for case in rows if case.is_possible()]


STREAMS = stream_rows()


def call_of(case: Case) -> Call:
    """As the table builds it; dense targets of a row in STREAMS are zeros but for the first rows and the last."""
    call = build(case)
    if case in STREAMS and case.is_dense:
        call.targets[3:-1] = 0
    return call


ROWS = CASES + STREAMS
GRID_OF = dict(zip(ROWS, cycle(GRIDS)))  # rows take turns


def rows_that_stream() -> list[Case]:
    """Those for which packed arithmetic is another code path."""
    return [
        c
        for c in ROWS
        if c.dtype != "float64"
        and (c in STREAMS or (c.weight is None and not isinstance(dict(c.axes).get("alpha"), str)))
        and c.layout == "contiguous"
    ]


# In units of 2^-23 or 2^-52, as in tolerances.py. On the host ex2 and rcp are exact; what a GPU's own do to these
# budgets is shown by tests/test_cuda_math.py.
PRODUCTS = "; alpha, weight, divisor and upstream factor are products of half a unit each"
TERM = "what one term may be off by; how they are added is ADDED"
TOLERANCES |= {
    ("cuda host, whole gamma", "float32", "hard"): Tolerance(
        18, "the budget is 16 units for gamma 0, 1 and 2" + PRODUCTS
    ),
    ("cuda host, whole gamma", "float32", "soft"): Tolerance(
        26, "as on the CPU: u is four roundings, squared, the terms a dozen more" + PRODUCTS
    ),
    ("cuda host, whole gamma", "float32", "sum"): Tolerance(26, TERM),
    ("cuda host, any gamma", "float32", "hard"): Tolerance(
        42, "the budget is 40 units where gamma multiplies the error of a logarithm" + PRODUCTS
    ),
    ("cuda host, any gamma", "float32", "soft"): Tolerance(42, "the same budget" + PRODUCTS),
    ("cuda host, any gamma", "float32", "sum"): Tolerance(42, TERM),
    ("cuda host, narrow", "float32", "hard"): Tolerance(
        212, "2.5e-5 is the budget of the stream whose results are rounded to 2^-9 or 2^-12" + PRODUCTS
    ),
    ("cuda host, narrow", "float32", "soft"): Tolerance(
        42, "soft targets are computed as for float32 logits" + PRODUCTS
    ),
    ("cuda host, narrow", "float32", "sum"): Tolerance(212, TERM),
    ("cuda host, double", "float64", "hard"): Tolerance(16, "the formula and libm of the CPU kernel"),
    ("cuda host, double", "float64", "soft"): Tolerance(24, "the formula and libm of the CPU kernel"),
    ("cuda host, double", "float64", "sum"): Tolerance(24, TERM),
}
ADDED = Tolerance(
    0.5,
    "units per term: a lane adds the terms of its tiles one after the other in the accumulation type, all of one sign",
)
FLUSHED = Tolerance(
    1,
    "units of 2^-126: where an exponential is smaller, the chip's ex2 gives 0; gamma, 1 / clip and a smoothed label's "
    "cross entropy multiply it",
)


def accuracy(case: Case) -> Implementation:
    """The public functions, under the name of the rows above that bind them."""
    kinds = {
        "float64": "double",
        "float32": "whole gamma" if dict(case.axes).get("gamma") in (0, 1, 2) else "any gamma",
    }
    return Implementation(f"cuda host, {kinds.get(case.dtype, 'narrow')}", focal_ext)


def terms_of_a_lane(case: Case, grid: int) -> float:
    """At most: its share of all logits, rounded up to whole tiles of at most 4096 logits or, of a pyramid, of 8
    rows."""
    numel = torch.Size(case.shape).numel()
    return numel / (256 * grid) + max(8 * case.shape[-1], min(numel, 4096)) / 32


def check(case: Case, grid: int) -> None:
    """Loss and gradient of a row, by whatever ops autograd uses, against the float64 reference."""
    call, implementation = call_of(case), accuracy(case)
    want = expected(call, case.loss)
    loss, gradient = call.run(implementation, case.loss)
    assert loss.shape == want.loss.shape and gradient.shape == call.inputs.shape

    is_plain = case.loss == LOSS and not case.label_smoothing
    multiplied = 1.0 if is_plain else (1 + max(case.exponents)) * case.steepest_term
    flushed = (
        FLUSHED.units * 2.0**-126 * (1 + want.factor.amax()) * multiplied
        if want.factor.numel() and case.dtype != "float64"
        else 0.0
    )
    if case.reduction == "none":
        room = slack(implementation, case, call, want, "hard", want.loss_magnitude) + flushed
    else:
        added = (
            ADDED.units
            * terms_of_a_lane(case, grid)
            * torch.finfo(torch.float64 if case.dtype == "float64" else torch.float32).eps
        )
        room = slack(implementation, case, call, want, "sum", want.loss_magnitude) + added * want.loss_magnitude
    off = outside(loss, want.loss, room)
    assert not off.any(), message(case, "losses", loss, want.loss, off)

    room = slack(implementation, case, call, want, "hard", want.gradient_magnitude) + flushed
    if case.reduction != "none" and case.dtype != "float16":
        room = room + rounded_before_grad_output(want.gradient, float(call.upstream), gradient.dtype)
    off = outside(gradient, want.gradient, room)
    assert not off.any(), message(case, "gradients", gradient, want.gradient, off)

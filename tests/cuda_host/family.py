# Owns: rows for the losses beside the plain focal loss: each hot loop of theirs, with every kind of targets, flow and
# type.
# Must not know: how the kernels are run (ops.py).
#
# How far off a result may be is told by the float64 reference itself: by how much it moves when a logit moves by a
# unit, or a target or a parameter by a relative unit. So it also tells where terms cancel (p near a score, p near the
# clip) and where a derivative jumps.
from __future__ import annotations

import zlib
from itertools import cycle, product
from typing import Any, NamedTuple

import focal_ext
import torch
from cases import EXPONENTS, Implementation, LAYOUTS
from losses import DECLARED
from rounding import outside
from test_values import message, rounded_before_grad_output
from tolerances import Tolerance
from torch import Tensor

DTYPES = ("float32", "bfloat16", "float16", "float64")
FORMULAS: dict[str, tuple[str, dict[str, Any]]] = {
    name: (loss.name, dict(options)) for loss in DECLARED.values() for name, options in loss.kernels.items()
}
TARGETS = ("ids rare", "pairs", "dense rare", "dense soft", "dense bool", "negatives")
# Reduction, normaliser and upstream: the flows of the hot loop, and every divisor.
WAYS = (
    ("sum", 7.3, "one"),
    ("none", None, "one"),
    ("none", None, "map"),
    ("sum", "positives", "three"),
    ("mean", None, "one"),
    ("sum", "tensor", "three"),
)
SHAPES = ((41, 80), (41, 91), (300, 3), (41, 1), (2, 17, 80), (9, 1203))


class Row(NamedTuple):
    formula: str
    dtype: str
    targets: str
    shape: tuple[int, ...]
    way: tuple[str, Any, str]
    weight: str | None
    layout: str
    extreme: bool = False

    def __str__(self) -> str:
        parts = (
            self.formula,
            self.dtype,
            self.targets,
            self.shape,
            " ".join(map(str, self.way)),
            self.weight and f"weight of {self.weight}",
            self.layout,
        )
        return ", ".join(str(p) for p in parts if p and p != "contiguous") + ", extreme" * self.extreme


def rows() -> list[Row]:
    shapes, ways, weights, layouts = (
        cycle(SHAPES),
        cycle(WAYS),
        cycle((None, None, None, "classes", None, "all", None)),
        cycle(("contiguous",) * 10 + ("unaligned",)),
    )
    made = []
    # two of six, so that every type meets all
    kinds = cycle(TARGETS[::2] + TARGETS[1::2] + TARGETS[1::2] + TARGETS[::2])
    for formula, dtype, targets in ((f, d, next(kinds)) for f, d, _ in product(FORMULAS, DTYPES, range(2))):
        way = next(w for w in ways if w[1] != "positives" or not targets.startswith("dense"))
        made.append(Row(formula, dtype, targets, next(shapes), way, next(weights), next(layouts)))
    dtypes = cycle((*DTYPES, *DTYPES[1:]))
    return made + [
        Row(f, next(dtypes), t, (41, 80), WAYS[1], None, "contiguous", True)
        for f, kinds in zip(FORMULAS, cycle((("pairs", "negatives"), ("pairs", "dense soft"))))
        for t in kinds
    ]


ROWS = rows()


class Arguments(NamedTuple):
    inputs: Tensor
    targets: Any
    options: dict[str, Any]
    upstream: Tensor


def arguments(row: Row) -> Arguments:
    rng, dtype, shape = (
        torch.Generator().manual_seed(zlib.crc32(repr(row).encode())),
        getattr(torch, row.dtype),
        row.shape,
    )

    def rand(*size: int) -> Tensor:
        return torch.rand(size, generator=rng)

    x = torch.randn(shape, generator=rng) * 4
    x = torch.where(rand(*shape) < 0.1, rand(*shape) * 200 - 100, x)
    if row.extreme:  # some of each in every row, where a stream has to give way to the careful path and where not
        far = torch.tensor([torch.inf, -torch.inf, torch.nan, 6e4, -6e4, 120.0, -120.0, -90.0, -1000.0, 0.0])
        x = torch.where(rand(*shape) < 0.1, far[torch.randint(0, len(far), shape, generator=rng)], x)
    chance, classes = rand(*shape[:-1]), shape[-1]
    often = {"negatives": 0.0, "pairs": 0.3, "dense soft": 1.0, "dense bool": 0.3}.get(row.targets, 0.02)
    ids = torch.where(
        chance < often,
        torch.randint(0, classes, shape[:-1], generator=rng),
        torch.where(chance < 0.6, -1, classes if classes > 1 else -1),
    )
    ids = torch.where((chance < 1.4 * often) & (chance > often), -2, ids)
    scores = torch.where(rand(*shape[:-1]) < 0.2, rand(*shape[:-1]).round(), rand(*shape[:-1]))
    targets: Any = ids
    if row.targets.startswith("dense"):
        targets = torch.where((chance < often)[..., None] & (rand(*shape) < 0.5), rand(*shape), 0.0)
        targets = (
            targets > 0
            if row.targets == "dense bool"
            else targets.to(torch.float32 if row.targets == "dense soft" else dtype)
        )
    elif DECLARED[FORMULAS[row.formula][0]].spec.needs_scores or row.targets == "pairs":
        # of others nothing reads the score
        targets = (
            ids,
            torch.where((ids >= 0) & (ids < classes), scores, torch.nan),
        )
    reduction, normalizer, upstream = row.way
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    weight = None if row.weight is None else rand(*shape[-1:] if row.weight == "classes" else shape).to(acc) * 2
    options = {
        **FORMULAS[row.formula][1],
        "reduction": reduction,
        "weight": weight,
        "normalizer": torch.tensor(7.3, dtype=acc) if normalizer == "tensor" else normalizer,
    }
    factor = {"one": torch.tensor(1.0), "three": torch.tensor(3.0), "map": rand(*shape)}[upstream].to(dtype)
    return Arguments(
        LAYOUTS[row.layout](x.to(dtype)), targets, options, factor.expand(shape) if reduction == "none" else factor
    )


def widened(a: Arguments) -> Arguments:
    """Float64 copies of what is computed with."""

    def wide(value: Any) -> Any:
        return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value

    targets = (
        tuple(map(wide, a.targets))
        if isinstance(a.targets, tuple)
        else a.targets.double()
        if a.targets.dim() == a.inputs.dim()
        else a.targets
    )
    return Arguments(a.inputs.double(), targets, {k: wide(v) for k, v in a.options.items()}, a.upstream.double())


def run(implementation: Implementation, loss: str, a: Arguments) -> tuple[Tensor, Tensor]:
    leaf = a.inputs.detach().requires_grad_()
    value = getattr(implementation.module, loss)(leaf, a.targets, **a.options)
    return value.detach(), torch.autograd.grad(value, leaf, a.upstream.to(value.dtype))[0]


REFERENCE, PUBLIC = Implementation("reference", focal_ext.reference), Implementation("native", focal_ext)
STEP = 2.0**-16


def neighbours(a: Arguments) -> list[Arguments]:
    """The call with its logits, targets and parameters a step up and down."""
    found = []
    for sign in (STEP, -STEP):
        found.append(a._replace(inputs=a.inputs + sign))
        if isinstance(a.targets, tuple):
            found.append(a._replace(targets=(a.targets[0], (a.targets[1] * (1 + sign)))))
        elif a.targets.is_floating_point():
            found.append(a._replace(targets=a.targets * (1 + sign)))
        found += [
            a._replace(options={**a.options, name: value * (1 + sign)})
            for name, value in a.options.items()
            if name in ("clip", "label_smoothing") and value
        ]
    return found


class Expected(NamedTuple):
    results: tuple[Tensor, Tensor]  # loss and gradient
    magnitudes: tuple[Tensor, Tensor]


def expected(loss: str, a: Arguments) -> Expected:
    exact = widened(a)
    results = run(REFERENCE, loss, exact)
    each = exact._replace(
        options={**exact.options, "reduction": "none", "normalizer": None}, upstream=torch.ones_like(exact.inputs)
    )
    here = run(REFERENCE, loss, each)
    moved = [run(REFERENCE, loss, neighbour) for neighbour in neighbours(each)]
    value, slope = (
        h.abs() + sum((m[i] - h).nan_to_num(0.0, 0.0, 0.0).abs() for m in moved) / STEP for i, h in enumerate(here)
    )
    divisor = 1.0 if results[0].dim() else float((here[0].sum() / results[0]).nan_to_num(1.0))
    return Expected(
        results,
        (value if results[0].dim() else value.sum() / abs(divisor), slope * exact.upstream.abs() / abs(divisor)),
    )


# In units of 2^-23 or 2^-52 of the magnitudes; the budgets are those of table.py.
UNITS = {
    "float": Tolerance(
        18, "16 units of a term, any power included, for its magnitude counts how fast it falls; and four products"
    ),
    "half": Tolerance(212, "2.5e-5, and four products"),
    "double": Tolerance(24, "the formula and libm of the CPU kernel"),
}
ADDED = Tolerance(
    0.5, "units per term: a lane adds the terms of its tiles one after the other in the accumulation type"
)
FLUSHED = Tolerance(
    4,
    "units of 2^-126: where an exponential is smaller, the chip's ex2 gives 0; the cross entropy, gamma and 1 / clip "
    "multiply it",
)


def units(row: Row) -> float:
    if row.dtype == "float64":
        return UNITS["double"].units
    return UNITS["half" if row.dtype != "float32" else "float"].units


def room(row: Row, grid: int, want: Expected) -> tuple[Tensor, Tensor]:
    eps = torch.finfo(torch.float64 if row.dtype == "float64" else torch.float32).eps
    loss, options = FORMULAS[row.formula]
    steepest = max(options[name] for name in EXPONENTS[loss])
    flushed = FLUSHED.units * 2.0**-126 * 120 * (1 + steepest) if row.dtype != "float64" else 1e-300
    of_gradient = units(row) * eps * want.magnitudes[1] + flushed
    if row.way[0] == "none":
        return units(row) * eps * want.magnitudes[0] + flushed, of_gradient
    numel = torch.Size(row.shape).numel()
    added = ADDED.units * (numel / (256 * grid) + max(8 * row.shape[-1], min(numel, 4096)) / 32)
    return (units(row) + added) * eps * want.magnitudes[0] + flushed * numel, of_gradient


def check(row: Row, grid: int) -> None:
    a = arguments(row)
    want, got = expected(FORMULAS[row.formula][0], a), run(PUBLIC, FORMULAS[row.formula][0], a)
    of_loss, of_gradient = room(row, grid, want)
    if row.way[0] != "none" and row.dtype != "float16":
        of_gradient = of_gradient + rounded_before_grad_output(want.results[1], float(a.upstream), got[1].dtype)
    for name, result, exact, slack in zip(("losses", "gradients"), got, want.results, (of_loss, of_gradient)):
        off = outside(result, exact, slack)
        assert not off.any(), message(row, name, result, exact, off)

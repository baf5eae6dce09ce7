# Owns: the table of cases: the rows made from the axes (axes.py), their tensors, the implementations that must pass all
# rows.
# Must not know: what the right answers are (oracle.py), how far off an answer may be (tolerances.py).
from __future__ import annotations

import os
import zlib
from types import ModuleType
from typing import Any, NamedTuple

import focal_ext
import torch
import torch.nn.functional as F
from axes import AXES, ID_DTYPES, PARAMETERS
from losses import DECLARED
from pairwise import rows_of_every_pair
from torch import Tensor

__all__ = ["AXES", "ID_DTYPES"]  # for the tests that draw their own rows

REFERENCE_ONLY = os.environ.get("FOCAL_EXT_TEST_BACKEND") == "reference"


class Implementation(NamedTuple):
    """A module that has the losses as functions, and where it runs them. `name` finds its row in tolerances.py."""

    name: str
    module: ModuleType
    device: str = "cpu"


IMPLEMENTATIONS = [
    Implementation("reference" if REFERENCE_ONLY else "native", focal_ext),  # the public functions, whatever they use
    Implementation("reference", focal_ext.reference),
]
PUBLIC = IMPLEMENTATIONS[0]
# `make gpu` sets this. Tests that place no tensors on a device run on the CPU as ever.
ON_DEVICES = [
    *IMPLEMENTATIONS,
    *([Implementation("cuda", focal_ext, "cuda")] if os.environ.get("FOCAL_EXT_TEST_DEVICE") == "cuda" else []),
]
GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 5.0)

# Memory that holds the same values in another way. Sizes below cross the block of 512 and the chunk of 16384 elements.
LAYOUTS = {
    "contiguous": lambda v: v,
    "unaligned": lambda v: torch.cat([v.new_zeros(1), v.flatten()])[1:].view(v.shape),
    "rows permuted": lambda v: v.transpose(0, -2).contiguous().transpose(0, -2),
    "rows cycled": lambda v: v.movedim(0, -2).contiguous().movedim(-2, 0),
    "classes slowest": lambda v: v.transpose(0, -1).contiguous().transpose(0, -1),
    "columns sliced": lambda v: F.pad(v, (1, 2))[..., 1:-2],
    "every second row": lambda v: v.repeat_interleave(2, 0)[::2],
    "one row expanded": lambda v: v[:1].expand(v.shape),
}
RANK_NEEDED = {"rows permuted": 3, "rows cycled": 4, "classes slowest": 2, "every second row": 2, "one row expanded": 2}

EXPONENTS = {
    loss: [name for name, kind in declared.drawn.items() if kind.startswith("exponent")]
    for loss, declared in DECLARED.items()
}


class Case(NamedTuple):
    loss: str
    axes: tuple[tuple[str, Any], ...]

    def __getattr__(self, axis: str) -> Any:
        for name, value in self.axes:
            if name == axis:
                return value
        raise AttributeError(axis)

    def __str__(self) -> str:
        """The loss, and the axes that differ from its everyday call."""
        usual = {axis: values[0] for axis, values in AXES[self.loss].items()}
        return ", ".join(
            [self.loss.removesuffix("_loss"), *(f"{axis} {value}" for axis, value in self.axes if value != usual[axis])]
        )

    @property
    def is_dense(self) -> bool:
        return self.targets.startswith("dense")

    @property
    def exponents(self) -> tuple[float, ...]:
        return tuple(value for axis, value in self.axes if axis in EXPONENTS.get(self.loss, ()))

    @property
    def steepest_term(self) -> float:
        """What may multiply a probability that rounds to 0: the cross entropy of a logit of 120, or 1 / (1 - u) of a
        clipped one."""
        return max(120.0, 1 / (dict(self.axes).get("clip") or 1.0))

    @property
    def id_dtype(self) -> torch.dtype:
        return torch.int64 if "rare" in self.targets else getattr(torch, self.targets.split()[1])

    def is_possible(self) -> bool:
        if self.is_dense and "positives" in self.reduction:
            return False
        if not self.targets.startswith("pair") and self.scores != "float32":
            return False
        if len(self.shape) < RANK_NEEDED.get(self.layout, 1):
            return False
        if not self.is_dense and self.shape[-1] > torch.iinfo(self.id_dtype).max:
            return False
        return self.reduction == "none" or not self.upstream.startswith("map")


def single_axis_cases(loss: str) -> list[Case]:
    """The everyday call with one axis moved, every value of every axis, in both reductions that take different
    routes."""
    usual = {axis: values[0] for axis, values in AXES[loss].items()}
    moved = [
        {**usual, "reduction": reduction, axis: value}
        for reduction in ("none", "sum")
        for axis, values in AXES[loss].items()
        for value in values
    ]
    return [case for case in (Case(loss, tuple(axes.items())) for axes in moved) if case.is_possible()]


def pair_cases(loss: str) -> list[Case]:
    """Rows that contain every possible pair of values of two axes."""
    rows = rows_of_every_pair(AXES[loss], lambda row: Case(loss, tuple(row.items())).is_possible())
    return [Case(loss, tuple(row.items())) for row in rows]


EVERY = int(os.environ.get("FOCAL_EXT_TEST_EVERY", 1))  # which row is taken, where the table runs a second time
CASES = list(dict.fromkeys(case for loss in AXES for case in single_axis_cases(loss) + pair_cases(loss)))[::EVERY]


class Call(NamedTuple):
    """The arguments of one call."""

    inputs: Tensor
    targets: Tensor | tuple[Tensor, Tensor]
    options: dict[str, Any]  # keyword arguments
    upstream: Tensor  # grad_output

    def run(self, implementation: Implementation, loss: str) -> tuple[Tensor, Tensor]:
        """Loss and gradient of the logits, a leaf that keeps its strides."""
        leaf = self.inputs.detach().requires_grad_()
        value = getattr(implementation.module, loss)(leaf, self.targets, **self.options)
        return value.detach(), torch.autograd.grad(value, leaf, self.upstream.to(value.dtype))[0]

    def in_float64(self) -> Call:
        """The same call on float64 copies of what this one computes with."""
        accumulation = torch.float64 if self.inputs.dtype == torch.float64 else torch.float32

        def widen(value: Any) -> Any:
            value = torch.tensor(value, dtype=accumulation) if isinstance(value, list) else value
            return value.double() if isinstance(value, Tensor) else value

        if isinstance(self.targets, tuple):
            targets = (self.targets[0], self.targets[1].to(accumulation).double())
        else:
            targets = self.targets.double() if self.targets.dim() == self.inputs.dim() else self.targets
        return Call(
            self.inputs.double(), targets, {k: widen(v) for k, v in self.options.items()}, self.upstream.double()
        )


def class_ids(case: Case, rng: torch.Generator) -> Tensor:
    dtype, ignored = case.id_dtype, case.ignore_index
    rows, classes = case.shape[:-1], case.shape[-1]
    limits = torch.iinfo(dtype)
    positive = torch.randint(0, max(classes, 1), rows, generator=rng) if classes else torch.full(rows, classes)
    chance = torch.rand(rows, generator=rng)
    often = 0.003 if "rare" in case.targets else 0.3
    # 1 is no background of one class
    ids = torch.where(chance < often, positive, classes if classes != 1 else 0 if limits.min == 0 else -1)
    if limits.min < 0:
        ids = torch.where(chance > 0.5, -1, ids)
    if ignored is not None and limits.min <= ignored <= limits.max:
        ids = torch.where((chance > often) & (chance < 1.4 * often), ignored, ids)
    return ids.to(dtype)


def scores(case: Case, ids: Tensor, rng: torch.Generator) -> Tensor:
    """A score in [0, 1] for each positive, the ends included; NaN where nothing may read it."""
    soft, read = torch.rand(ids.shape, generator=rng), (ids.long() >= 0) & (ids.long() < case.shape[-1])
    soft = torch.where(torch.rand(ids.shape, generator=rng) < 0.2, soft.round(), soft)
    read = read if case.ignore_index is None else read & (ids.long() != case.ignore_index)
    return torch.where(read, soft, torch.nan).to(getattr(torch, case.scores))


def with_ignored(targets: Tensor, ignored: int | None, share: float, rng: torch.Generator) -> Tensor:
    """Some dense targets replaced by the number that is ignored, where the dtype has it."""
    there = torch.rand(targets.shape, generator=rng) < share
    holds = targets.is_floating_point() or (
        targets.dtype is not torch.bool
        and torch.iinfo(targets.dtype).min <= (ignored or 0) <= torch.iinfo(targets.dtype).max
    )
    return targets if ignored is None or not holds else targets.masked_fill(there, ignored)


def dense_targets(case: Case, rng: torch.Generator) -> Tensor:
    targets = plain_dense_targets(case, rng)
    usual = case.ignore_index == -2 and case.targets != "dense float32"  # mostly none is ignored
    return targets if usual else with_ignored(targets, case.ignore_index, 0.1, rng)


def plain_dense_targets(case: Case, rng: torch.Generator) -> Tensor:
    kind, hard = case.targets.split()[1], (torch.rand(case.shape, generator=rng) < 0.1)
    if kind in ("soft", "float32"):
        soft = torch.rand(case.shape, generator=rng).where(torch.rand(case.shape, generator=rng) < 0.7, hard.float())
        return soft.to(torch.float32 if kind == "float32" else getattr(torch, case.dtype))
    if kind == "near":  # of 1, which only float32 is
        return 1 - 2.0 ** -torch.randint(18, 25, case.shape, generator=rng)
    return hard.to(getattr(torch, case.dtype if kind == "0/1" else kind))


def weights(case: Case, rng: torch.Generator, dtype: torch.dtype) -> Tensor | None:
    if case.weight is None:
        return None
    shape = {
        "classes": case.shape[-1:],
        "rows": (*case.shape[:-1], 1),
        "classes strided": (2 * case.shape[-1],),
        "full strided": (*case.shape[:-1], 2 * case.shape[-1]),
        "scalar": (),
        "first axis": (*case.shape[:1], *[1] * (len(case.shape) - 1)),
    }.get(case.weight, case.shape)
    values = (torch.rand(shape, generator=rng) * 2).to(dtype)
    if case.weight == "classes expanded":
        return torch.rand((), generator=rng).to(dtype).expand(case.shape[-1:])
    if "strided" in case.weight:
        return values[..., ::2]
    return values * (values > 1) if case.weight == "zeros" else values


def build(case: Case, device: str = "cpu") -> Call:
    """The call of a row: logits mostly of N(0, 4), some of the tails to +-100, the same at every run."""
    rng, dtype = torch.Generator().manual_seed(zlib.crc32(repr(case).encode())), getattr(torch, case.dtype)
    tails = torch.rand(case.shape, generator=rng) * 200 - 100
    logits = (
        (torch.randn(case.shape, generator=rng) * 4).where(torch.rand(case.shape, generator=rng) < 0.9, tails).to(dtype)
    )
    parts = [dense_targets(case, rng) if case.is_dense else class_ids(case, rng)]
    parts += [scores(case, parts[0], rng)] if case.targets.startswith("pair") else []
    if case.layout != "contiguous" and parts[0].dim():
        parts = [
            LAYOUTS["every second row"](t.long() if t.dtype.is_signed is False and not case.is_dense else t).to(t.dtype)
            for t in parts
        ]
    parts = [t.to(device) for t in parts]
    per_class, axes = torch.rand(case.shape[-1], generator=rng), dict(case.axes)
    alpha = axes.get("alpha")
    options = {
        **(
            {"alpha": {"list": per_class.tolist(), "tensor": per_class}[alpha] if isinstance(alpha, str) else alpha}
            if "alpha" in axes
            else {}
        ),
        **{name: axes[name] for name in PARAMETERS if name in axes},
        "reduction": case.reduction.split()[0],
        "normalizer": {"float": 7.3, "tensor": torch.tensor(7.3).to(device), "positives": "positives"}.get(
            case.reduction.split(" / ")[-1]
        ),
        "weight": weights(case, rng, dtype),
        "ignore_index": case.ignore_index,
    }
    upstream = torch.tensor({"half": 0.5, "three": 3.0}.get(case.upstream, 1.0), dtype=dtype)
    if case.upstream.startswith("map"):
        shapes = {"map of rows": (*case.shape[:-1], 1), "map of classes": case.shape[-1:]}
        upstream = (torch.rand(shapes.get(case.upstream, case.shape), generator=rng) * 2).to(dtype).expand(case.shape)
        upstream = LAYOUTS["classes slowest"](upstream) if "transposed" in case.upstream else upstream
    elif case.reduction == "none":
        upstream = upstream.expand(case.shape)
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
    return Call(
        LAYOUTS[case.layout](logits.to(device)),
        parts[0] if len(parts) == 1 else tuple(parts),
        options,
        upstream.to(device),
    )

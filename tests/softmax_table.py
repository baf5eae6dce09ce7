# Owns: the rows of the softmax focal loss's table, and the call that each row makes.
# Must not know: what the right answers are, how far off an answer may be.
from __future__ import annotations

import random
import zlib
from typing import Any, NamedTuple

import torch
from cases import EVERY, ID_DTYPES, LAYOUTS, RANK_NEEDED, Call, with_ignored

LOSS = "softmax_focal_loss"

# The first value of each axis is the everyday call. Shapes cross the batch of 128 rows and 2048 exponentials, and the
# chunk of 16384 logits.
AXES: dict[str, tuple[Any, ...]] = {
    "shape": (
        (9, 80),
        (137, 91),
        (300, 80),
        (700, 3),
        (1030, 16),
        (7, 2048),
        (3, 2049),
        (2, 4500),
        (2, 17, 10),
        (2, 3, 5, 7),
        (37,),
        (6, 1),
        (1, 2),
        (0, 80),
        (2, 0, 4),
    ),
    "dtype": ("float32", "bfloat16", "float16", "float64"),
    "layout": tuple(LAYOUTS),
    "gamma": (2.0, 0.0, 0.5, 1.0, 1.7, 5.0),
    "targets": (
        *(f"ids {d}" for d in ID_DTYPES),
        "dense soft",
        "dense float32",
        "dense one-hot",
        "dense bool",
        "dense uint8",
        "dense int64",
    ),
    "weight": (None, "rows", "first axis", "last axis", "scalar", "zeros"),
    "alpha": (None, 0.25, -1, 0, 3.0, "list", "tensor"),
    "reduction": ("none", "mean", "sum", "sum / float", "sum / tensor", "sum / positives"),
    "ignore_index": (-100, None, 0, 255),
    "smoothing": (0.0, 0.1, 1.0),
    "upstream": ("ones", "map", "map transposed"),
}


class Row(NamedTuple):
    axes: tuple[tuple[str, Any], ...]

    def __getattr__(self, axis: str) -> Any:
        for name, value in self.axes:
            if name == axis:
                return value
        raise AttributeError(axis)

    def __str__(self) -> str:
        return ", ".join(f"{axis} {value}" for axis, value in self.axes if value != AXES[axis][0]) or "everyday call"

    def is_possible(self) -> bool:
        dense = self.targets.startswith("dense")
        if dense and ("positives" in self.reduction or self.smoothing):
            return False
        if len(self.shape) < RANK_NEEDED.get(self.layout, 1) or (
            self.upstream != "ones" and (self.reduction != "none" or len(self.shape) < 3)
        ):
            return False
        return dense or self.shape[-1] <= torch.iinfo(getattr(torch, self.targets.split()[1])).max


def table() -> list[Row]:
    """The everyday call with one axis moved, reduced and not, and 250 rows of random values, the same at every run."""
    rng, usual = random.Random(0), {axis: values[0] for axis, values in AXES.items()}
    moved = [
        {**usual, "reduction": r, axis: value}
        for r in ("none", "mean")
        for axis, values in AXES.items()
        for value in values
    ]
    maps = [
        {**usual, "shape": (2, 17, 10), "targets": t, "upstream": u}
        for t in ("ids int64", "dense soft")
        for u in AXES["upstream"]
    ]
    rolled = [{axis: rng.choice(values) for axis, values in AXES.items()} for _ in range(1000)]
    rows = [Row(tuple(axes.items())) for axes in (*moved, *maps, *rolled)]
    return list(dict.fromkeys(row for row in rows if row.is_possible()))[:400]


ROWS = table()[::EVERY]


def build(row: Row) -> Call:
    rng, dtype, shape = (
        torch.Generator().manual_seed(zlib.crc32(repr(row).encode())),
        getattr(torch, row.dtype),
        row.shape,
    )
    rows, classes = shape[:-1], shape[-1]
    spread = torch.rand((*rows, 1), generator=rng) * 12  # from undecided rows to rows with p near 1
    x = LAYOUTS[row.layout]((torch.randn(shape, generator=rng) * spread).to(dtype))
    chance = torch.rand(rows, generator=rng)
    if row.targets.startswith("dense"):
        kind = row.targets.split()[1]
        hard = (
            torch.nn.functional.one_hot(torch.randint(classes, rows, generator=rng), classes)
            if x.numel()
            else torch.zeros(shape, dtype=torch.int64)
        )
        soft = torch.softmax(torch.randn(shape, generator=rng) * 3, -1) * (torch.rand(shape, generator=rng) < 0.5)
        targets = {"soft": soft.to(dtype), "float32": soft, "one-hot": hard.to(dtype)}.get(kind)
        targets = hard.to(getattr(torch, kind)) if targets is None else targets
        if row.ignore_index != -100 or kind == "float32":
            targets = with_ignored(targets, row.ignore_index, 0.3 / max(classes, 1), rng)
    else:
        limits, ids = torch.iinfo(getattr(torch, row.targets.split()[1])), torch.randint(classes, rows, generator=rng)
        ignored = row.ignore_index
        if ignored is not None and limits.min <= ignored <= limits.max:
            ids = torch.where(chance < 0.2, ignored, ids)
        targets = ids.to(getattr(torch, row.targets.split()[1]))
    per_class = torch.rand(classes, generator=rng) * 2
    sizes = {"first axis": (*rows[:1], *[1] * (len(rows) - 1)), "last axis": rows[-1:], "scalar": ()}.get(
        row.weight, rows
    )
    weight = (torch.rand(sizes, generator=rng) * 2).to(dtype)
    options = {
        "alpha": {"list": per_class.tolist(), "tensor": per_class}.get(row.alpha, row.alpha)
        if isinstance(row.alpha, str)
        else row.alpha,
        "gamma": row.gamma,
        "reduction": row.reduction.split()[0],
        "normalizer": {"float": 7.3, "tensor": torch.tensor(7.3), "positives": "positives"}.get(
            row.reduction.split(" / ")[-1]
        ),
        "weight": None if row.weight is None else weight * (weight > 1) if row.weight == "zeros" else weight,
        "ignore_index": row.ignore_index,
        "label_smoothing": row.smoothing,
    }
    upstream = torch.ones((), dtype=dtype).expand(rows if row.reduction == "none" else ())
    if row.upstream != "ones":
        upstream = (torch.rand(rows, generator=rng) * 2).to(dtype)
        upstream = LAYOUTS["classes slowest"](upstream) if "transposed" in row.upstream else upstream
    return Call(x, targets, options, upstream)

# Owns: how the time per logit grows with the number of logits and of classes: ours, eager and the copy floor.
# Must not know: how any of them works, how figures are drawn.
"""python -m bench.growth [--csv bench/results/growth.csv] [--threads 2] [--largest 1000000000] [--seconds 3]"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from tqdm import tqdm

from . import baselines
from .cases import Case, synthetic
from .compare import EAGER, EAGER_FACTOR, FLOOR, OURS, fused, provenance, write
from .measure import Copy, Step, hush, interleaved

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZES = tuple(10**k for k in range(3, 10))
CLASSES = (1, 3, 20, 80, 90, 365, 1203)
EVERYDAY = 16_128_000  # 201,600 x 80
DRAWN = 10_000_000  # logits; larger tensors repeat them, as drawing 10^9 takes longer than measuring them
EAGER_LIMIT = 10e9  # bytes that eager may take


class Point(NamedTuple):
    sweep: str  # what grows
    elements: int
    classes: int
    dtype: str


def points(largest: int) -> list[Point]:
    sizes = [Point("elements", elements, 80, dtype) for dtype in DTYPES for elements in SIZES if elements <= largest]
    return sizes + [Point("classes", min(EVERYDAY, largest), classes, dtype) for dtype in DTYPES for classes in CLASSES]


def case_of(point: Point) -> Case:
    """As many rows as come nearest to the wanted number of logits, at least one."""
    rows = max(1, round(point.elements / point.classes))
    drawn = synthetic("", min(rows, max(1, round(DRAWN / point.classes))), point.classes, DTYPES[point.dtype])
    times = -(-rows // len(drawn.ids))
    return (
        replace(drawn, logits=drawn.logits.repeat(times, 1)[:rows], ids=drawn.ids.repeat(times)[:rows])
        if times > 1
        else drawn
    )


def alternatives(case: Case) -> Iterator[tuple[str, Step | str]]:
    """All on one leaf, whose gradient the next one frees or, as the copy does, fills: 10^9 float32 logits take 8 GB."""
    leaf = case.logits.requires_grad_()
    needed = EAGER_FACTOR * leaf.numel() * leaf.element_size()
    too_much = f"would take {needed / 1e9:.0f} GB, more than {EAGER_LIMIT / 1e9:.0f}"
    yield EAGER, too_much if needed > EAGER_LIMIT else Step(lambda x: baselines.eager(x, case.ids, case.gamma), leaf)
    yield OURS, Step(fused(case), leaf)
    yield FLOOR, Copy(torch.sum, leaf)


def rows_of(point: Point, seconds: float) -> list[dict[str, object]]:
    case = case_of(point)
    elements, found = case.logits.numel(), dict(alternatives(case))
    steps = {name: step for name, step in found.items() if isinstance(step, Step)}
    timings = interleaved(steps, seconds, least=3, in_a_row=max(1, 100_000 // elements))
    about = {
        "sweep": point.sweep,
        "classes": point.classes,
        "elements": point.elements,
        "measured_elements": elements,
        "dtype": point.dtype,
    }
    rows: list[dict[str, object]] = []
    for name, step in found.items():
        if isinstance(step, str):
            rows.append(
                {
                    **about,
                    "implementation": name,
                    **dict.fromkeys(("ns", "ns_p20", "ns_p80", "rounds"), ""),
                    "why_not": step,
                }
            )
            continue
        timing = timings[name]
        ns = (value * 1e9 / elements for value in (timing.median, timing.p20, timing.p80))
        rows.append(
            {
                **about,
                "implementation": name,
                **dict(zip(("ns", "ns_p20", "ns_p80"), ns)),
                "rounds": timing.rounds,
                "why_not": "",
            }
        )
    return rows


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(
        description="Time per logit, forward and backward, against the number of logits and of classes."
    )
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--largest", type=int, default=SIZES[-1], help="logits; less for a machine with less than 12 GB of free memory"
    )
    parser.add_argument(
        "--seconds", type=float, default=3.0, help="timed seconds per point, all implementations together"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [
        row
        for point in tqdm(points(options.largest), desc="growing", unit="point")
        for row in rows_of(point, options.seconds)
    ]
    shown = [
        [
            row["sweep"],
            row["elements"],
            row["classes"],
            row["dtype"],
            row["implementation"],
            row["why_not"] or f"{row['ns']:.3g}",
        ]
        for row in rows
    ]
    print(
        tabulate(
            shown,
            headers=["growing", "logits", "classes", "dtype", "implementation", "ns per logit"],
            disable_numparse=True,
        )
    )
    write(options.csv, rows, provenance("cpu", "bench.growth"))


if __name__ == "__main__":
    main()

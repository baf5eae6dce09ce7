# Owns: the logits that are measured: which sizes, dtypes and threads, against whom.
# Must not know: implementations, clocks.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

ANCHORS = 201_600  # of RetinaNet on 800 x 1344 pixels: five levels of 22,400 cells together, nine anchors each
STRIDE_16, STRIDE_32 = 37_800, 9_450  # single levels, for detectors that call the loss level by level


@dataclass
class Case:
    name: str
    logits: Tensor
    ids: Tensor
    gamma: float = 2.0
    compiled: tuple[str, ...] = ("eager", "masked", "selected")  # formulations of bench/baselines.py
    peers: bool = True  # other libraries
    forward: bool = False  # the value alone
    threads: int | None = None  # None: as the process has

    def to(self, device: str) -> Case:
        return replace(self, logits=self.logits.to(device), ids=self.ids.to(device))


def synthetic(name: str, anchors: int, classes: int, dtype: torch.dtype = torch.float32, **about: object) -> Case:
    """Logits as a detector has them early in training: N(-6, 1.5), 1 % of anchors positive, 1 % ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(anchors, classes, generator=generator).mul_(1.5).sub_(6).to(dtype)
    draw = torch.rand(anchors, generator=generator)
    ids = torch.where(draw < 0.01, torch.randint(0, classes, (anchors,), generator=generator), -1)
    return Case(name, logits, ids.masked_fill((draw >= 0.01) & (draw < 0.02), -2), **about)


# A case is drawn when its turn comes: all of them at once would be gigabytes.
Draw = Callable[[], Case]


def trained_case(saved_by_demo: Path) -> Case:
    saved = torch.load(saved_by_demo, weights_only=True)
    return Case("logits of this training", saved["logits"].float().flatten(0, -2), saved["targets"].flatten())


def everyday(quick: bool, trained: Path | None) -> list[Draw]:
    """The long table of docs/performance.md."""
    draws = [partial(trained_case, trained)] if trained is not None else []
    draws.append(partial(synthetic, f"{ANCHORS:,} x 80 fp32", ANCHORS, 80))
    return draws if quick else [
        *draws,
        partial(synthetic, f"{ANCHORS:,} x 80 bf16", ANCHORS, 80, torch.bfloat16),
        partial(synthetic, f"{ANCHORS:,} x 80 fp32, gamma 1.5", ANCHORS, 80, gamma=1.5, compiled=(), peers=False),
        partial(synthetic, "100 x 80 fp32", 100, 80, compiled=(), peers=False),
    ]  # fmt: skip


# eager and the two formulations that compile well
fewer = partial(synthetic, compiled=("masked", "selected"), peers=False)


def sizes() -> list[Draw]:
    """Other numbers of classes, one level, the value alone, one thread."""
    return [
        partial(fewer, "100 x 80 bf16", 100, 80, torch.bfloat16),
        partial(fewer, "100 x 80 fp32, 1 thread", 100, 80, threads=1),
        partial(fewer, f"{ANCHORS:,} x 90 fp32", ANCHORS, 90),
        partial(fewer, f"{ANCHORS:,} x 365 fp32", ANCHORS, 365),
        partial(fewer, f"{STRIDE_16:,} x 1203 fp32, one level", STRIDE_16, 1203),
        partial(fewer, f"{STRIDE_32:,} x 80 fp32, one level", STRIDE_32, 80),
        partial(fewer, f"{ANCHORS:,} x 80 fp32, forward alone", ANCHORS, 80, forward=True),
        partial(fewer, f"{ANCHORS:,} x 80 fp32, 1 thread", ANCHORS, 80, threads=1),
        partial(fewer, f"{ANCHORS:,} x 80 bf16, forward alone", ANCHORS, 80, torch.bfloat16, forward=True),
        partial(fewer, f"{ANCHORS:,} x 80 bf16, 1 thread", ANCHORS, 80, torch.bfloat16, threads=1),
    ]


def largest() -> list[Draw]:
    """All levels of 1203 classes: logits of 1 GB in fp32, the eager chain of 13."""
    return [
        partial(fewer, f"{ANCHORS:,} x 1203 fp32", ANCHORS, 1203),
        partial(fewer, f"{ANCHORS:,} x 1203 bf16", ANCHORS, 1203, torch.bfloat16),
    ]

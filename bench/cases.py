# Owns: the logits that are measured: which sizes, dtypes and threads, against whom.
# Must not know: implementations, clocks.
from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
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


def everyday(quick: bool, trained: Path | None) -> Iterator[Case]:
    """The README's table."""
    if trained is not None:
        saved = torch.load(trained, weights_only=True)
        yield Case("logits of this training", saved["logits"].float().flatten(0, -2), saved["targets"].flatten())
    yield synthetic(f"{ANCHORS:,} x 80 fp32", ANCHORS, 80)
    if not quick:
        yield synthetic(f"{ANCHORS:,} x 80 bf16", ANCHORS, 80, torch.bfloat16)
        yield synthetic(f"{ANCHORS:,} x 80 fp32, gamma 1.5", ANCHORS, 80, gamma=1.5, compiled=(), peers=False)
        yield synthetic("100 x 80 fp32", 100, 80, compiled=(), peers=False)


FEWER = {"compiled": ("masked", "selected"), "peers": False}  # eager and the two formulations that compile well


def sizes() -> Iterator[Case]:
    """Other numbers of classes, one level, the value alone, one thread."""
    yield synthetic("100 x 80 bf16", 100, 80, torch.bfloat16, **FEWER)
    yield synthetic("100 x 80 fp32, 1 thread", 100, 80, threads=1, **FEWER)
    yield synthetic(f"{ANCHORS:,} x 90 fp32", ANCHORS, 90, **FEWER)
    yield synthetic(f"{ANCHORS:,} x 365 fp32", ANCHORS, 365, **FEWER)
    yield synthetic(f"{STRIDE_16:,} x 1203 fp32, one level", STRIDE_16, 1203, **FEWER)
    yield synthetic(f"{STRIDE_32:,} x 80 fp32, one level", STRIDE_32, 80, **FEWER)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        yield synthetic(f"{ANCHORS:,} x 80 {name}, forward alone", ANCHORS, 80, dtype, forward=True, **FEWER)
        yield synthetic(f"{ANCHORS:,} x 80 {name}, 1 thread", ANCHORS, 80, dtype, threads=1, **FEWER)


def largest() -> Iterator[Case]:
    """All levels of 1203 classes: logits of 1 GB in fp32, the eager chain of 13."""
    yield synthetic(f"{ANCHORS:,} x 1203 fp32", ANCHORS, 1203, **FEWER)
    yield synthetic(f"{ANCHORS:,} x 1203 bf16", ANCHORS, 1203, torch.bfloat16, **FEWER)

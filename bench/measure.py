# Owns: the clock and the memory meter; all alternatives run interleaved in one process.
# Must not know: which loss is measured.
from __future__ import annotations

import gc
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile


def hush() -> None:
    """Keeps what the profiler and the compiler say of themselves (a baseline's graph break) out of the tables."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    torch._logging.set_logs(dynamo=logging.ERROR)


@dataclass
class Step:
    """One forward and backward of `loss` on `logits`. `prepare` runs before it, outside the clock."""

    loss: Callable[[Tensor], Tensor]
    logits: Tensor
    prepare: Callable[[], object] = lambda: None

    def ready(self) -> None:
        self.logits.grad = None
        self.prepare()

    def run(self) -> None:
        self.loss(self.logits).backward()

    def once(self) -> None:
        self.ready()
        self.run()

    def gradient(self) -> Tensor:
        self.once()
        assert self.logits.grad is not None
        return self.logits.grad


@dataclass
class Copy(Step):
    """The floor of any loss that is not fused into the layer before it: read the logits once, write a tensor of their
    size once."""

    def ready(self) -> None:
        if self.logits.grad is None:
            self.logits.grad = torch.empty_like(self.logits)

    def run(self) -> None:
        assert self.logits.grad is not None
        self.logits.grad.copy_(self.logits.detach())


@dataclass
class Forward(Step):
    """The value alone, as in a validation: no gradient will be asked for."""

    value: Tensor | None = None

    def run(self) -> None:
        with torch.no_grad():
            self.value = self.loss(self.logits)


@dataclass
class Read(Step):
    """The floor of a value alone: the same bytes, read once. Half types are added up as if they were float32, which
    torch does faster."""

    def run(self) -> None:
        self.logits.detach().flatten().view(torch.float32).sum()


@dataclass
class Timing:
    median: float  # seconds
    p20: float
    p80: float
    rounds: int
    least: float


def _quantile(values: list[float], share: float) -> float:
    return sorted(values)[round(share * (len(values) - 1))]


def median_and_spread(times: list[float]) -> Timing:
    return Timing(_quantile(times, 0.5), _quantile(times, 0.2), _quantile(times, 0.8), len(times), min(times))


def seconds_of(step: Step) -> float:
    step.ready()
    if step.logits.is_cuda:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        step.run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3
    start = time.perf_counter()
    step.run()
    return time.perf_counter() - start


def interleaved(
    steps: dict[str, Step], seconds: float, least: int = 5, most: int = 200, in_a_row: int = 1
) -> dict[str, Timing]:
    """Times the steps in turn, round after round, so that a busy machine slows all of them alike.

    Each is warmed twice; then rounds run until `seconds` have passed for all together, at least `least` and at most
    `most`. A turn is one step, or the mean of `in_a_row` where one is too short for the clock.
    """
    for step in steps.values():
        step.once()
        step.once()
    times: dict[str, list[float]] = {name: [] for name in steps}
    begin, rounds = time.perf_counter(), 0
    while rounds < least or (rounds < most and time.perf_counter() - begin < seconds):
        for name, step in steps.items():
            times[name].append(sum(seconds_of(step) for _ in range(in_a_row)) / in_a_row)
        rounds += 1
    return {name: median_and_spread(t) for name, t in times.items()}


def peak_bytes(step: Step) -> int:
    """The most memory a step holds beyond the logits: the running sum of the allocator's events, to the byte."""
    step.ready()
    gc.collect()
    if step.logits.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step.run()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        step.run()
    now = peak = 0
    for event in sorted(
        (e for e in trace.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    ):
        now += event.nbytes()
        peak = max(peak, now)
    return peak


def system_bytes(file: str, which: str) -> int:
    """What Linux says: of this process in memory now ("self/status", "VmRSS") or at most ("VmHWM"), of the machine free
    ("meminfo", "MemAvailable")."""
    line = next(line for line in Path("/proc", file).read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024

# Owns: the README's figures: every implementation in a process of its own, with its memory kept, timed in turn.
# Must not know: how any of them works, how figures are drawn.
"""python -m bench.apart [--to bench/results]: writes apart.csv.

In one process the pages that one implementation frees are faulted in again by the next, which then looks slow. Here
each keeps its own. Peaks of whole heads are bench.head's, with the default allocator: pages that are kept hide what a
step uses anew from the process's size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from . import head
from .cases import ANCHORS, Case, synthetic
from .compare import error_of, keep_memory, makers, provenance, worst_relative_error, write
from .performance_page import read_rows
from .measure import Step, hush, median_and_spread, peak_bytes, seconds_of

CLASSES = 80
# A turn whose threads waited for a core for more than this share of it says nothing of the implementation.
DISTURBED = 0.01
PAUSE = 0.05  # seconds between turns: the threads of the process before fall asleep
ROWS, BF16, GENERIC, OUTPUTS, CONVOLUTION = (
    "rows fp32",
    "rows bf16",
    "rows fp32, gamma 1.5",
    "head's outputs fp32",
    "last convolution and loss fp32",
)


class Setting(NamedTuple):
    """What is measured: the names of the implementations, a step of one of them, and its error (None: not comparable
    logit by logit)."""

    names: tuple[str, ...]
    step: Callable[[str], Step]
    error: Callable[[Step], float | str]


def over_rows(anchors: int, compiled: tuple[str, ...] = ("masked", "selected"), **about: Any) -> Setting:
    case = synthetic("", anchors, CLASSES, compiled=compiled, peers=False, **about)
    made = makers(case, case.logits.detach().requires_grad_())
    return Setting(tuple(made), lambda name: made[name](), lambda step: error_of(step, case))


def over_outputs(_: int) -> Setting:
    names = tuple(name for name in head.LOSSES if "overwrite" not in name)  # a leaf cannot be overwritten
    return Setting(names, lambda name: head.loss_step(name, CLASSES, head.Setting()), error_of_levels)


def with_convolution(_: int) -> Setting:
    names = tuple(name for name in (*head.LOSSES, head.FUSED) if "overwrite" not in name)
    return Setting(names, lambda name: head.head_step(name, CLASSES, 1), lambda step: "")


SETTINGS: dict[str, Callable[[int], Setting]] = {
    ROWS: over_rows,
    BF16: partial(over_rows, dtype=torch.bfloat16),
    GENERIC: partial(over_rows, compiled=(), gamma=1.5),
    OUTPUTS: over_outputs,
    CONVOLUTION: with_convolution,
}


def error_of_levels(step: Step) -> float:
    assert isinstance(step, head.Steps)
    step.once()
    gradients = [leaf.grad for leaf in step.leaves if leaf.grad is not None]
    logits, gradient = (
        head.rows(list(levels), CLASSES) for levels in ([leaf.detach() for leaf in step.leaves], gradients)
    )
    return worst_relative_error(gradient, Case("", logits, head.labels(1, CLASSES).flatten()))


def bytes_of(step: Step) -> int:
    return head.bytes_of(step) if isinstance(step, head.Steps) else step.logits.numel() * step.logits.element_size()


def serve(setting: str, name: str, anchors: int) -> None:
    """A worker: makes one step, then answers each line it reads: "turn" by seconds, "report" by memory and error."""
    chosen = SETTINGS[setting](anchors)
    step = chosen.step(name)
    answer: dict[str, object] = {"first_call_s": seconds_of(step)}
    step.once()
    print(json.dumps(answer), flush=True)
    for line in sys.stdin:
        if line.strip() == "turn":
            step.once()  # the processor comes back to this process; not timed
            before = waited()
            answer = {"seconds": seconds_of(step), "waited": waited() - before}
        else:
            answer = {
                "peak_extra_logits": peak_bytes(step) / bytes_of(step),
                "worst_relative_error": chosen.error(step),
            }
        print(json.dumps(answer), flush=True)


def waited() -> float:
    """Seconds that this process's threads were ready to run while others had the processor, since they started."""
    return sum(int(task.read_text().split()[1]) for task in Path("/proc/self/task").glob("*/schedstat")) / 1e9


class Worker:
    """One implementation in its own process."""

    def __init__(self, setting: str, name: str, anchors: int, threads: int) -> None:
        command = [
            sys.executable,
            "-m",
            "bench.apart",
            "--worker",
            setting,
            name,
            "--anchors",
            str(anchors),
            "--threads",
            str(threads),
        ]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"a worker ended: {self.process.args}")

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        print(what, file=self.process.stdin, flush=True)
        return self.answer()

    def end(self) -> None:
        self.process.communicate()


def turns(
    workers: dict[str, Worker], seconds: float, limit: float, least: int = 9
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """Rounds of one turn each, A B C A B C: the times of undisturbed turns, and how many others each had.

    They end after `seconds`, once each has `least` undisturbed turns, or at the `limit`; below three there would be no
    median.
    """
    calm: dict[str, list[float]] = {name: [] for name in workers}
    rounds, begin = 0, time.perf_counter()
    while (passed := time.perf_counter() - begin) < seconds or (
        min(map(len, calm.values())) < least and passed < limit
    ):
        for name, worker in workers.items():
            turn = worker.ask("turn")
            if turn["waited"] < DISTURBED * turn["seconds"]:
                calm[name].append(turn["seconds"])
            time.sleep(PAUSE)
        rounds += 1
    if few := [name for name, times in calm.items() if len(times) < 3]:
        raise SystemExit(
            f"too busy a machine: fewer than three undisturbed turns of {', '.join(few)} in {limit:.0f} seconds"
        )
    return calm, {name: rounds - len(times) for name, times in calm.items()}


def rows_of(setting: str, anchors: int, seconds: float, limit: float, threads: int) -> list[dict[str, object]]:
    workers = {name: Worker(setting, name, anchors, threads) for name in SETTINGS[setting](1).names}
    first = {name: worker.answer() for name, worker in workers.items()}
    times, disturbed = turns(workers, seconds, limit)
    rows: list[dict[str, object]] = []
    for name, worker in workers.items():
        timing = median_and_spread(times[name])
        about = {
            "setting": setting,
            "implementation": name,
            "ms": timing.median * 1e3,
            "ms_p20": timing.p20 * 1e3,
            "ms_p80": timing.p80 * 1e3,
        }
        rows.append(
            {**about, "turns": timing.rounds, "turns_disturbed": disturbed[name], **worker.ask("report"), **first[name]}
        )
        worker.end()
    return rows


def replace(path: Path, setting: str, rows: list[dict[str, object]], origin: dict[str, object]) -> None:
    """Writes the rows in place of those that the file has of this setting; a row keeps the commit, date and command
    that it was measured with."""
    kept = [row for row in read_rows(path) if row["setting"] != setting] if path.exists() else []
    order = list(SETTINGS)
    every = sorted([*kept, *({**row, **origin} for row in rows)], key=lambda row: order.index(str(row["setting"])))
    write(path, every, {})


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(
        description="Compare focal_ext with eager and compiled PyTorch, each in a process of its own that keeps memory."
    )
    parser.add_argument(
        "--seconds", type=float, default=20.0, help="timed seconds of each setting, all implementations together"
    )
    parser.add_argument(
        "--limit", type=float, default=120.0, help="seconds after which a setting ends, undisturbed or not"
    )
    parser.add_argument(
        "--setting", action="append", choices=tuple(SETTINGS), help="this setting alone; the CSV's other rows stay"
    )
    parser.add_argument(
        "--anchors",
        type=int,
        default=ANCHORS,
        help="rows of logits; the head's outputs are always those of a whole image",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--to", type=Path, default=head.RESULTS, help="folder of the CSV files")
    parser.add_argument(
        "--worker", nargs=2, metavar=("SETTING", "IMPLEMENTATION"), help="serve one implementation from this process"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.worker:
        serve(*options.worker, options.anchors)
        return
    keep_memory("bench.apart")
    for setting in tqdm(options.setting or SETTINGS, unit="setting"):
        rows = rows_of(setting, options.anchors, options.seconds, options.limit, options.threads)
        replace(options.to / "apart.csv", setting, rows, provenance("cpu", "bench.apart"))


if __name__ == "__main__":
    main()

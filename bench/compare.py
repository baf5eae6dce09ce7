# Owns: the comparison of the fused op with eager PyTorch, torch.compile and the reference: speed, memory and error in
# one table.
# Must not know: how any of them works.
"""python -m bench.compare [--quick | --sizes | --largest] [--device cuda] [--logits out/demo/logits.pt] [--csv
bench/results/cpu.csv]"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

import focal_ext

from . import baselines
from .cases import ANCHORS, Case, everyday, largest, sizes
from .measure import Copy, Forward, Read, Step, hush, interleaved, peak_bytes, system_bytes
from .performance_page import spread

EAGER, OURS = "eager PyTorch (torchvision)", "focal_ext"
OVERWRITING = f"{OURS}, overwrite_inputs"
FLOOR = "copy (read + write, the floor)"
FORWARD_FLOOR = "sum (read, the floor)"

# glibc returns a block of this size to the system when it is freed and faults every page of the next one in again.
# These settings keep it.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"
EAGER_FACTOR = 13  # eager holds 12 tensors of the logits' size beside them (peak_extra_logits of cpu.csv)
# what else lies in memory meanwhile: logits, buffer and gradient of overwrite_inputs, and the gaps between blocks; with
# KEEP_MEMORY those are as much again
OTHERS_FACTOR = 4


class Layer(torch.autograd.Function):
    """Stands for the layer that made the logits: its output lies in `buffer`, its gradient goes to `leaf`."""

    @staticmethod
    def forward(ctx: object, leaf: Tensor, buffer: Tensor) -> Tensor:
        return buffer

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def too_much(case: Case) -> str:
    """Why eager would not fit the machine's memory; empty where it does. What this process holds counts as free: the
    logits, and blocks that the allocator kept."""
    needed = (EAGER_FACTOR + OTHERS_FACTOR) * case.logits.numel() * case.logits.element_size()
    free = system_bytes("meminfo", "MemAvailable") + system_bytes("self/status", "VmRSS")
    return (
        f"would take {needed / 1e9:.0f} GB, {free / 1e9:.0f} are free"
        if needed > free and not case.logits.is_cuda
        else ""
    )


def fused(case: Case, **options: bool) -> Tensor:
    return lambda x: focal_ext.sigmoid_focal_loss(
        x, case.ids, gamma=case.gamma, reduction="sum", normalizer="positives", **options
    )


def baseline_step(loss: baselines.Baseline, case: Case, leaf: Tensor) -> Step:
    return (Forward if case.forward else Step)(lambda x: loss(x, case.ids, case.gamma), leaf)


def overwriting_step(case: Case) -> Step:
    """Its leaf is its own, and it gets its logits back before each step."""
    overwrite = fused(case, overwrite_inputs=True)
    buffer, own = case.logits.clone(), case.logits.clone().requires_grad_()
    return Step(lambda x: overwrite(Layer.apply(x, buffer)), own, lambda: buffer.copy_(case.logits))


def makers(case: Case, leaf: Tensor) -> dict[str, Callable[[], Step]]:
    """Every implementation but other libraries', each made when it is called. They share a leaf, but for the one that
    overwrites."""
    made: dict[str, Callable[[], Step]] = {EAGER: lambda: baseline_step(baselines.eager, case, leaf)}
    for formulation in case.compiled:
        made[f"torch.compile, {formulation}"] = lambda name=formulation: baseline_step(
            torch.compile(getattr(baselines, name), dynamic=False), case, leaf
        )
    made[OURS] = lambda: (Forward if case.forward else Step)(fused(case), leaf)
    if case.forward:
        return {**made, FORWARD_FLOOR: lambda: Read(torch.sum, leaf)}
    return {**made, OVERWRITING: lambda: overwriting_step(case), FLOOR: lambda: Copy(torch.sum, leaf)}


def alternatives(case: Case) -> tuple[dict[str, Step], dict[str, str]]:
    """Every implementation, other libraries before ours, and why others are not measured."""
    skipped: dict[str, str] = {}
    leaf = case.logits.detach().requires_grad_()
    made = makers(case, leaf)
    if why := too_much(case):
        skipped[EAGER] = why
        del made[EAGER]
    theirs = [name for name in made if not name.startswith(OURS) and name not in (FLOOR, FORWARD_FLOOR)]
    steps = {name: made.pop(name)() for name in theirs}
    for name, peer in baselines.peers(case.logits.is_cuda).items() if case.peers else ():
        if isinstance(peer, str):
            skipped[name] = peer
            continue
        candidate = baseline_step(peer, case, leaf)
        try:
            candidate.once()
        except RuntimeError as error:
            skipped[name] = f"{error}".splitlines()[0]
        else:
            steps[name] = candidate
    return {**steps, **{name: make() for name, make in made.items()}}, skipped


def worst_relative_error(gradient: Tensor, case: Case, rows: int = 10_000) -> float:
    """The worst error of the first rows' gradients that are normal numbers, against the reference in float64."""
    x = case.logits[:rows].double().requires_grad_()
    normalizer = max(1, int((case.ids >= 0).sum()))
    focal_ext.reference.sigmoid_focal_loss(
        x, case.ids[:rows], 0.25, case.gamma, "sum", normalizer=normalizer
    ).backward()
    assert x.grad is not None
    normal = x.grad.abs() > torch.finfo(case.logits.dtype).tiny
    return float(((gradient[:rows].double() - x.grad).abs() / x.grad.abs())[normal].max())


def error_of(step: Step, case: Case, rows: int = 10_000) -> float | str:
    """The error of the value where it alone is computed, else of the gradient; "" for a floor."""
    if isinstance(step, (Copy, Read)):
        return ""
    if not isinstance(step, Forward):
        return worst_relative_error(step.gradient(), case)
    parts = zip(case.logits.split(rows), case.ids.split(rows))
    exact = sum(
        float(focal_ext.reference.sigmoid_focal_loss(x.double(), ids, 0.25, case.gamma, "sum")) for x, ids in parts
    )
    exact /= max(1, int((case.ids >= 0).sum()))
    step.once()
    assert step.value is not None
    return abs(float(step.value) - exact) / exact


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(case: Case, seconds: float) -> list[dict[str, object]]:
    torch._dynamo.reset()
    steps, skipped = alternatives(case)
    compile_seconds = {}
    for name, step in steps.items():  # the first call compiles
        start = time.perf_counter()
        step.once()
        compile_seconds[name] = time.perf_counter() - start
    timings = interleaved(
        steps,
        seconds,
        least=5 if case.logits.numel() < 10**8 else 3,
        in_a_row=1 if case.logits.numel() > 100_000 else 50,
    )
    size = case.logits.numel() * case.logits.element_size()
    rows = []
    for name, step in steps.items():
        timing = timings[name]
        rows.append(
            {
                "case": case.name,
                "implementation": name,
                "ms": timing.median * 1e3,
                "ms_p20": timing.p20 * 1e3,
                "ms_p80": timing.p80 * 1e3,
                "rounds": timing.rounds,
                "speedup": timing.median / timings[OURS].median,
                "ns_per_logit": timing.median * 1e9 / case.logits.numel(),
                "peak_extra_logits": peak_bytes(step) / size,
                "worst_relative_error": error_of(step, case),
                "first_call_s": compile_seconds[name],
                "why_not": "",
            }
        )
    return rows + not_measured(rows[0], skipped)


def keep_memory(module: str) -> None:
    """Starts the process anew under the recommended settings, which are read when one starts."""
    if "GLIBC_TUNABLES" not in os.environ:
        os.execve(
            sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY}
        )


def not_measured(like: dict[str, object], skipped: dict[str, str]) -> list[dict[str, object]]:
    """Rows of the same case that are empty but for the reason."""
    return [
        {**dict.fromkeys(like, ""), "case": like["case"], "implementation": name, "why_not": why}
        for name, why in skipped.items()
    ]


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def commit_of(git: str) -> str:
    """The commit that is measured; results written meanwhile do not make it another."""
    describe, status = (
        [git, "describe", "--always"],
        [git, "status", "--porcelain", "-uno", "--", ".", ":!bench/results"],
    )
    commit, changed = (
        subprocess.run(c, capture_output=True, text=True, check=False).stdout.strip() for c in (describe, status)
    )
    return f"{commit}-dirty" if changed else commit


def provenance(device: str, module: str = "bench.compare") -> dict[str, object]:
    cpu = f"{processor()}, {torch.get_num_threads()} threads, {focal_ext.build_info()['cpu_level']}"
    git = shutil.which("git")
    commit = commit_of(git) if git else ""
    return {
        "machine": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device == "cuda" else cpu,
        "torch": torch.__version__,
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"),
        "focal_ext": focal_ext.__version__,
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
        "command": " ".join([f"python -m {module}", *sys.argv[1:]]).replace(f"{Path.cwd()}/", ""),
    }


def with_progress(cases: list[Callable[[], Case]]) -> Iterable[Callable[[], Case]]:
    """A GPU's machine may have no tqdm, nor tabulate: then there is no bar and no table, and the CSV is the same."""
    try:
        from tqdm import tqdm
    except ImportError:
        return cases
    return tqdm(cases, desc="comparing", unit="case")


def print_table(rows: list[dict[str, object]]) -> None:
    try:
        from tabulate import tabulate
    except ImportError:
        print("no table: pip install tabulate")
        return

    def line(row: dict[str, object]) -> list[object]:
        if row.get("why_not"):
            why = str(row["why_not"])
            return [
                row["case"],
                row["implementation"],
                "not installed" if why.startswith("No module named") else f"not measured: {why}",
            ]
        ratio = "1" if row["implementation"] == OURS else f"{row['speedup']:.3g}"
        return [
            row["case"],
            row["implementation"],
            spread(row, "ms"),
            ratio,
            f"{row['peak_extra_logits']:.2f}",
            f"{row['worst_relative_error']:.1e}" if row["worst_relative_error"] else "",
        ]

    headers = [
        "logits",
        "implementation",
        "ms\nmedian (p20 - p80)",
        "times\nfocal_ext's",
        "peak extra memory\n/ logits",
        "worst relative error\nof a gradient or value",
    ]
    print(tabulate([line(row) for row in rows], headers=headers, disable_numparse=True))
    if any(str(row.get("why_not", "")).startswith("No module named") for row in rows):
        print("other libraries: pip install -r bench/peers.txt")


def write(path: Path | None, rows: list[dict[str, object]], origin: dict[str, object]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *origin])
        writer.writeheader()
        writer.writerows(
            {**{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}, **origin} for row in rows
        )
    print(path)


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(description="Compare focal_ext with eager PyTorch and torch.compile.")
    parser.add_argument("--quick", action="store_true", help=f"only the demo's logits and {ANCHORS:,} x 80 in float32")
    parser.add_argument(
        "--sizes", action="store_true", help="other numbers of classes, one level, forward alone, one thread"
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="1203 classes of all levels; without --keep-memory, whose gaps between blocks they do not leave room for",
    )
    parser.add_argument("--logits", type=Path, help="a file of logits and class ids that `make demo` wrote")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--keep-memory", action="store_true", help="run under the recommended allocator settings")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--seconds", type=float, default=12.0, help="timed seconds per case, all implementations together"
    )
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory("bench.compare")
    torch.set_num_threads(options.threads)
    trained = options.logits if options.logits and options.logits.exists() else None
    cases = sizes() if options.sizes else largest() if options.largest else everyday(options.quick, trained)
    rows = []
    for draw in with_progress(cases):
        case = draw()
        with threads(case.threads):
            rows += rows_of(case.to(options.device), options.seconds)
    origin = provenance(options.device)
    print(
        f"\n{origin['machine']}; torch {torch.__version__}; allocator: {origin['allocator']}; interleaved in one "
        "process; compile time not included"
    )
    write(options.csv, rows, origin)
    print_table(rows)


if __name__ == "__main__":
    main()

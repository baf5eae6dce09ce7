# Owns: the comparison of the fused op with eager PyTorch, torch.compile and the reference: speed, memory and error in one table.
# Must not know: how any of them works.
"""python -m bench.compare [--quick] [--device cuda] [--logits out/demo/logits.pt] [--csv bench/results/cpu.csv]"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor
from tqdm import tqdm

import focal_ext

from . import baselines
from .measure import Copy, Step, hush, interleaved, peak_bytes

OURS = "focal_ext"
FLOOR = "copy (read + write, the floor)"

# glibc returns a block of this size to the system when it is freed and faults every page of the next one in again. These settings keep it.
KEEP_MEMORY = "glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184"


@dataclass
class Case:
    name: str
    logits: Tensor
    ids: Tensor
    gamma: float = 2.0
    compiled: bool = True

    def to(self, device: str) -> Case:
        return Case(self.name, self.logits.to(device), self.ids.to(device), self.gamma, self.compiled)


def synthetic(name: str, anchors: int, classes: int, dtype: torch.dtype = torch.float32, gamma: float = 2.0, compiled: bool = True) -> Case:
    """Logits as a detector has them early in training: N(-6, 1.5), 1 % of anchors positive, 1 % ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(anchors, classes, generator=generator) * 1.5 - 6).to(dtype)
    draw = torch.rand(anchors, generator=generator)
    ids = torch.where(draw < 0.01, torch.randint(0, classes, (anchors,), generator=generator), -1)
    return Case(name, logits, ids.masked_fill((draw >= 0.01) & (draw < 0.02), -2), gamma, compiled)


def cases(quick: bool, trained: Path | None) -> Iterator[Case]:
    if trained is not None:
        saved = torch.load(trained, weights_only=True)
        yield Case("logits of this training", saved["logits"].float().flatten(0, -2), saved["targets"].flatten())
    yield synthetic("200,000 x 80 fp32", 200_000, 80)
    if not quick:
        yield synthetic("200,000 x 80 bf16", 200_000, 80, torch.bfloat16)
        yield synthetic("200,000 x 80 fp32, gamma 1.5", 200_000, 80, gamma=1.5, compiled=False)
        yield synthetic("100 x 80 fp32", 100, 80, compiled=False)


class Layer(torch.autograd.Function):
    """Stands for the layer that made the logits: its output lies in `buffer`, its gradient goes to `leaf`."""

    @staticmethod
    def forward(ctx: object, leaf: Tensor, buffer: Tensor) -> Tensor:
        return buffer

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def fused(case: Case, **options: bool) -> Tensor:
    return lambda x: focal_ext.sigmoid_focal_loss(x, case.ids, gamma=case.gamma, reduction="sum", normalizer="positives", **options)


def alternatives(case: Case) -> dict[str, Step]:
    """Every implementation on its own leaf; the one that overwrites gets its logits back before each step."""

    def step(loss) -> Step:  # type: ignore[no-untyped-def]
        return Step(loss, case.logits.clone().requires_grad_())

    steps = {"eager PyTorch (torchvision)": step(lambda x: baselines.eager(x, case.ids, case.gamma))}
    if case.compiled:
        for formulation in (baselines.eager, baselines.masked, baselines.selected):
            compiled = torch.compile(formulation, dynamic=False)
            steps[f"torch.compile, {formulation.__name__}"] = step(lambda x, f=compiled: f(x, case.ids, case.gamma))
    for name, peer in (baselines.installed_peers() if case.logits.is_cuda else {}).items():
        candidate = step(lambda x, f=peer: f(x, case.ids, case.gamma))
        try:
            candidate.gradient()
        except RuntimeError as error:
            print(f"{name} does not run on {case.name}: {error}")
        else:
            steps[name] = candidate
    steps[OURS] = step(fused(case))
    leaf = case.logits.clone().requires_grad_()
    overwrite = fused(case, overwrite_inputs=True)
    buffer = case.logits.clone()
    steps[f"{OURS}, overwrite_inputs"] = Step(lambda x: overwrite(Layer.apply(x, buffer)), leaf, lambda: buffer.copy_(case.logits))
    steps[FLOOR] = Copy(torch.sum, case.logits.clone())
    return steps


def worst_relative_error(gradient: Tensor, case: Case, rows: int = 10_000) -> float:
    """Of any gradient of the first rows that is a normal number of its dtype, against the reference in float64."""
    x = case.logits[:rows].double().requires_grad_()
    normalizer = max(1, int((case.ids >= 0).sum()))
    focal_ext.reference.sigmoid_focal_loss(x, case.ids[:rows], 0.25, case.gamma, "sum", normalizer=normalizer).backward()
    assert x.grad is not None
    normal = x.grad.abs() > torch.finfo(case.logits.dtype).tiny
    return float(((gradient[:rows].double() - x.grad).abs() / x.grad.abs())[normal].max())


def rows_of(case: Case, seconds: float) -> list[dict[str, object]]:
    torch._dynamo.reset()
    steps = alternatives(case)
    compile_seconds = {}
    for name, step in steps.items():  # the first call compiles
        start = time.perf_counter()
        step.gradient()
        compile_seconds[name] = time.perf_counter() - start
    timings = interleaved(steps, seconds, in_a_row=1 if case.logits.numel() > 100_000 else 50)
    size = case.logits.numel() * case.logits.element_size()
    rows = []
    for name, step in steps.items():
        timing = timings[name]
        rows.append({
            "case": case.name, "implementation": name, "ms": timing.median * 1e3, "ms_p20": timing.p20 * 1e3, "ms_p80": timing.p80 * 1e3,
            "rounds": timing.rounds, "speedup": timing.median / timings[OURS].median, "ns_per_logit": timing.median * 1e9 / case.logits.numel(),
            "peak_extra_logits": peak_bytes(step) / size,
            "worst_relative_error": "" if name == FLOOR else worst_relative_error(step.gradient(), case),
            "first_call_s": compile_seconds[name],
        })  # fmt: skip
    return rows


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def provenance(device: str, module: str = "bench.compare") -> dict[str, object]:
    cpu = f"{processor()}, {torch.get_num_threads()} threads, {focal_ext.build_info()['cpu_level']}"
    git = shutil.which("git")
    commit = subprocess.run([git, "describe", "--always", "--dirty"], capture_output=True, text=True, check=False).stdout.strip() if git else ""
    return {
        "machine": f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}" if device == "cuda" else cpu, "torch": torch.__version__,
        "allocator": os.environ.get("GLIBC_TUNABLES", "default"), "focal_ext": focal_ext.__version__, "commit": commit,
        "date": time.strftime("%Y-%m-%d"), "command": " ".join([f"python -m {module}", *sys.argv[1:]]),
    }  # fmt: skip


def print_table(rows: list[dict[str, object]]) -> None:
    def line(row: dict[str, object]) -> list[object]:
        spread = f"{row['ms']:.3g} ({row['ms_p20']:.3g} - {row['ms_p80']:.3g})"
        ratio = "1" if row["implementation"] == OURS else f"{row['speedup']:.3g}"
        return [row["case"], row["implementation"], spread, ratio, f"{row['peak_extra_logits']:.2f}", f"{row['worst_relative_error']:.1e}" if row["worst_relative_error"] else ""]

    headers = ["logits", "implementation", "forward + backward, ms\nmedian (p20 - p80)", "times\nfocal_ext's", "peak extra memory\n/ logits", "worst relative error\nof a gradient vs fp64"]
    print(tabulate([line(row) for row in rows], headers=headers, disable_numparse=True))


def write(path: Path | None, rows: list[dict[str, object]], origin: dict[str, object]) -> None:
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *origin])
        writer.writeheader()
        writer.writerows({**{k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}, **origin} for row in rows)
    print(path)


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(description="Compare focal_ext with eager PyTorch and torch.compile.")
    parser.add_argument("--quick", action="store_true", help="only the demo's logits and 200,000 x 80 in float32")
    parser.add_argument("--logits", type=Path, help="a file of logits and class ids that `make demo` wrote")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--keep-memory", action="store_true", help="run under the recommended allocator settings")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=12.0, help="timed seconds per case, all implementations together")
    options = parser.parse_args()
    if options.keep_memory and "GLIBC_TUNABLES" not in os.environ:  # read when a process starts, hence the new one
        os.execve(sys.executable, [sys.executable, "-m", "bench.compare", *sys.argv[1:]], {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY})
    torch.set_num_threads(options.threads)
    trained = options.logits if options.logits and options.logits.exists() else None
    rows = [row for case in tqdm(list(cases(options.quick, trained)), desc="comparing", unit="case") for row in rows_of(case.to(options.device), options.seconds)]
    origin = provenance(options.device)
    print(f"\n{origin['machine']}; torch {torch.__version__}; allocator: {origin['allocator']}; interleaved in one process; compile time not included")
    print_table(rows)
    write(options.csv, rows, origin)


if __name__ == "__main__":
    main()

# Owns: the comparison of the family's other members with their eager and compiled forms.
# Must not know: how any of them works.
"""python -m bench.family [--csv bench/results/family.csv] [--rows 201600]"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import focal_ext

from .cases import ANCHORS, synthetic
from .compare import KEEP_MEMORY, OURS, not_measured, print_table, provenance, write
from .family_baselines import BASELINES, peers
from .measure import Step, hush, interleaved, peak_bytes


def ours(loss: str, ids: Tensor, scores: Tensor) -> Callable[[Tensor], Tensor]:
    function = getattr(focal_ext, loss)
    if loss == "softmax_focal_loss":
        return lambda x: function(x, ids, reduction="sum")
    targets = (ids, scores) if loss in ("quality_focal_loss", "varifocal_loss") else ids
    return lambda x: function(x, targets, reduction="sum")


def rows_of(loss: str, logits: Tensor, ids: Tensor, scores: Tensor, seconds: float) -> list[dict[str, object]]:
    torch._dynamo.reset()
    eager, formulations = BASELINES[loss]
    if loss == "softmax_focal_loss":  # background is a class like others
        ids = ids.masked_fill(ids < 0, logits.shape[1] - 1)

    def step(function: Callable[[Tensor], Tensor]) -> Step:
        return Step(function, logits.clone().requires_grad_())

    def form(function: Callable[..., Tensor]) -> str:
        return function.__name__.split("_", 1)[1].replace("_", "-")

    steps = {f"eager PyTorch, {form(f)}" if len(eager) > 1 else "eager PyTorch": step(lambda x, f=f: f(x, ids, scores)) for f in eager}
    for formulation in formulations:
        compiled = torch.compile(formulation, dynamic=False)
        steps[f"torch.compile, {form(formulation)}"] = step(lambda x, f=compiled: f(x, ids, scores))
    libraries = peers(loss)
    skipped = {name: why for name, why in libraries.items() if isinstance(why, str)}
    steps |= {name: step(lambda x, f=peer: f(x, ids, scores)) for name, peer in libraries.items() if name not in skipped}
    steps[OURS] = step(ours(loss, ids, scores))
    exact = logits[:2000].double().requires_grad_()
    want = torch.autograd.grad(ours_reference(loss, ids[:2000], scores[:2000].double())(exact), exact)[0]
    timings = interleaved(steps, seconds)
    rows = []
    for name, each in steps.items():
        error = (each.gradient()[:2000].double() - want).abs().max() / want.abs().max()
        assert error < 1e-4, f"{name} computes another {loss}: its gradient is off by {error}"
        rows.append({
            "case": f"{loss}, {logits.shape[0]:,} x {logits.shape[1]}", "implementation": name, "ms": timings[name].median * 1e3,
            "ms_p20": timings[name].p20 * 1e3, "ms_p80": timings[name].p80 * 1e3, "rounds": timings[name].rounds,
            "speedup": timings[name].median / timings[OURS].median, "ns_per_logit": timings[name].median * 1e9 / logits.numel(),
            "peak_extra_logits": peak_bytes(each) / (logits.numel() * logits.element_size()), "worst_relative_error": float(error), "why_not": "",
        })  # fmt: skip
    return rows + not_measured(rows[0], skipped)


def ours_reference(loss: str, ids: Tensor, scores: Tensor) -> Callable[[Tensor], Tensor]:
    function = getattr(focal_ext.reference, loss)
    if loss == "softmax_focal_loss":
        return lambda x: function(x, ids, reduction="sum")
    return lambda x: function(x, (ids, scores) if loss in ("quality_focal_loss", "varifocal_loss") else ids, reduction="sum")


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(description="Compare the family's other losses with eager PyTorch and torch.compile.")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--rows", type=int, default=ANCHORS, help="anchors of 80 classes")
    parser.add_argument("--keep-memory", action="store_true", help="run under the recommended allocator settings")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed seconds per loss, all implementations together")
    options = parser.parse_args()
    if options.keep_memory and "GLIBC_TUNABLES" not in os.environ:  # read when a process starts, hence the new one
        os.execve(sys.executable, [sys.executable, "-m", "bench.family", *sys.argv[1:]], {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY})
    case = synthetic("family", options.rows, 80)
    ids = case.ids.masked_fill(case.ids == -2, -1)
    scores = torch.rand(options.rows, generator=torch.Generator().manual_seed(1))
    losses = [loss for loss in BASELINES if hasattr(focal_ext, loss)]
    rows = [row for loss in tqdm(losses, desc="comparing", unit="loss") for row in rows_of(loss, case.logits, ids, scores, options.seconds)]
    origin = provenance("cpu", "bench.family")
    print(f"\n{origin['machine']}; torch {torch.__version__}; allocator: {origin['allocator']}; interleaved in one process; compile time not included")
    print_table(rows)
    write(options.csv, rows, origin)


if __name__ == "__main__":
    main()

# Owns: the comparison of the family's other members with their eager and compiled forms.
# Must not know: how any of them works.
"""python -m bench.family [--sizes] [--csv bench/results/family.csv] [--rows 201600]"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import focal_ext

from .cases import ANCHORS, Case, synthetic
from .compare import FLOOR, FORWARD_FLOOR, OURS, keep_memory, not_measured, print_table, provenance, threads, write
from .family_baselines import BASELINES, libraries
from .measure import Copy, Forward, Read, Step, hush, interleaved, peak_bytes

# Of a gradient against its largest, or of a value: what a formula's own rounding explains. Beyond it another loss was
# computed.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
OF_SIZES = ("quality_focal_loss", "varifocal_loss", "asymmetric_loss", "softmax_focal_loss")


def cases(loss: str, rows: int, sizes: bool) -> Iterator[Case]:
    """The loss as it is trained, else what else is asked of it: half types, the value alone, one thread."""
    name = f"{loss}, {rows:,} x 80"
    if not sizes:
        yield synthetic(name, rows, 80)
        return
    yield synthetic(f"{name}, bf16", rows, 80, torch.bfloat16)
    for about, more in (("forward alone", {"forward": True}), ("1 thread", {"threads": 1})):
        yield synthetic(f"{name}, fp32 {about}", rows, 80, **more)
        yield synthetic(f"{name}, bf16 {about}", rows, 80, torch.bfloat16, **more)


def fused(name: str, ids: Tensor, scores: Tensor, of: object = focal_ext) -> Callable[[Tensor], Tensor]:
    """By the package, or by its reference."""
    loss, options = BASELINES[name].loss, BASELINES[name].options
    targets = (ids, scores) if getattr(focal_ext, loss).spec.needs_scores else ids
    return lambda x: getattr(of, loss)(x, targets, reduction="sum", **options)


def exactly(loss: str, x: Tensor, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64."""
    x = x.double().requires_grad_()
    value = fused(loss, ids, scores.double(), of=focal_ext.reference)(x)
    return value.detach(), torch.autograd.grad(value, x)[0]


def errors_against_float64(
    loss: str, case: Case, ids: Tensor, scores: Tensor, rows: int = 2000
) -> Callable[[Step], float]:
    """The error of the value where it alone is computed, else of the first rows' gradient against its largest."""
    if case.forward:
        parts = zip(case.logits.split(rows), ids.split(rows), scores.split(rows))
        value = sum(float(exactly(loss, *part)[0]) for part in parts)

        def of_value(step: Step) -> float:
            step.once()
            return abs(float(step.value) - value) / value  # type: ignore[attr-defined]

        return of_value
    gradient = exactly(loss, case.logits[:rows], ids[:rows], scores[:rows])[1]
    return lambda step: float((step.gradient()[:rows].double() - gradient).abs().max() / gradient.abs().max())


def alternatives(loss: str, case: Case, ids: Tensor, scores: Tensor) -> tuple[dict[str, Step], dict[str, str]]:
    """Every implementation, all on one leaf, and why others are not measured."""
    _, _, eager, formulations = BASELINES[loss]
    leaf = case.logits.requires_grad_()

    def step(function: Callable[..., Tensor]) -> Step:
        return (Forward if case.forward else Step)(lambda x: function(x, ids, scores), leaf)

    steps = {f"eager PyTorch, {form}" if form else "eager PyTorch": step(f) for form, f in eager.items()}
    steps |= {f"torch.compile, {form}": step(torch.compile(f, dynamic=False)) for form, f in formulations.items()}
    others = libraries(loss)
    steps |= {name: step(peer) for name, peer in others.items() if not isinstance(peer, str)}
    steps[OURS] = (Forward if case.forward else Step)(fused(loss, ids, scores), leaf)
    steps[FORWARD_FLOOR if case.forward else FLOOR] = (Read if case.forward else Copy)(torch.sum, leaf)
    return steps, {name: why for name, why in others.items() if isinstance(why, str)}


def rows_of(loss: str, case: Case, seconds: float) -> list[dict[str, object]]:
    torch._dynamo.reset()
    background = case.logits.shape[1] - 1 if loss == "softmax_focal_loss" else -1  # a class like others, or none
    ids = case.ids.masked_fill(case.ids < 0, background)
    scores = torch.rand(len(ids), generator=torch.Generator().manual_seed(1)).to(case.logits.dtype)
    error_of = errors_against_float64(loss, case, ids, scores)
    steps, skipped = alternatives(loss, case, ids, scores)
    timings = interleaved(steps, seconds)
    rows = []
    for name, each in steps.items():
        error = "" if isinstance(each, (Copy, Read)) else error_of(each)
        assert not error or error < TOLERANCE[case.logits.dtype], (
            f"{name} computes another {loss}: it is off by {error}"
        )
        rows.append(
            {
                "case": case.name,
                "implementation": name,
                "ms": timings[name].median * 1e3,
                "ms_p20": timings[name].p20 * 1e3,
                "ms_p80": timings[name].p80 * 1e3,
                "rounds": timings[name].rounds,
                "speedup": timings[name].median / timings[OURS].median,
                "ns_per_logit": timings[name].median * 1e9 / case.logits.numel(),
                "peak_extra_logits": peak_bytes(each) / (case.logits.numel() * case.logits.element_size()),
                "worst_relative_error": error,
                "why_not": "",
            }
        )
    return rows + not_measured(rows[0], skipped)


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(
        description="Compare the family's other losses with eager PyTorch and torch.compile."
    )
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--rows", type=int, default=ANCHORS, help="anchors of 80 classes")
    parser.add_argument("--sizes", action="store_true", help="bf16, forward alone, one thread")
    parser.add_argument("--keep-memory", action="store_true", help="run under the recommended allocator settings")
    parser.add_argument(
        "--seconds", type=float, default=8.0, help="timed seconds per loss and setting, all implementations together"
    )
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory("bench.family")
    rows = []
    for loss in tqdm(OF_SIZES if options.sizes else BASELINES, desc="comparing", unit="loss"):
        for case in cases(loss, options.rows, options.sizes):
            with threads(case.threads):
                rows += rows_of(loss, case, options.seconds)
    origin = provenance("cpu", "bench.family")
    print(
        f"\n{origin['machine']}; torch {torch.__version__}; allocator: {origin['allocator']}; interleaved in one "
        "process; compile time not included"
    )
    print_table(rows)
    write(options.csv, rows, origin)


if __name__ == "__main__":
    main()

# Owns: what the compiled CUDA kernels cost: instructions per logit against the budgets, registers, spills.
# Must not know: how machine code is read (bench/sass.py), the page.
"""python -m bench.kernels [--library focal_ext/libfocal_ext.so] [--write]: fails where a budget is exceeded; writes
bench/results/kernels.csv."""

from __future__ import annotations

import argparse
import csv
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from . import sass
from .kernels_page import HOT, SIZE
from .sass import Kernel, Loop

ROOT = Path(__file__).resolve().parent.parent
LIBRARY, RESULTS = ROOT / "focal_ext/libfocal_ext.so", ROOT / "bench/results/kernels.csv"

# Instructions a logit may issue in the hot loop (gamma 2, loss and gradient), and the limits of every hot loop.
BUDGET: dict[tuple[str, str], float] = {("sm_80", "fp32"): 28.5, ("sm_90", "fp32"): 28.5, ("sm_100", "fp32"): 19}
BUDGET |= {("sm_80", "bf16"): 23, ("sm_90", "bf16"): 23, ("sm_100", "bf16"): 15.5}
# fp16 computes in float32, so that its loss maps round correctly.
BUDGET |= {("sm_80", "fp16"): 27, ("sm_90", "fp16"): 27, ("sm_100", "fp16"): 18}
# A pyramid, whose tiles stream with positives and ignored anchors among them.
PYRAMID_BUDGET = {("sm_80", "bf16"): 24, ("sm_90", "bf16"): 24}
MUFU = {"0 or 1": 2, "2": 2, "4": 2, "any": 3}
MUFU_OF_CLIP = 2  # one reciprocal and one logarithm more
# What no stream takes: weights of logits, factors beside maps, dense targets but 0 and 1, unaligned views, a tail.
CAREFUL = "careful path"
# Beside a stream that takes factors from shared memory: weights of rows, where a vector lies in one row and where not,
# and factors of classes.
PER_ROW, PER_ROWS, PER_CLASS = f"{HOT}, weight per row", f"{HOT}, weight per row, any C", f"{HOT}, factor per class"
FACTOR_BUDGET = {
    (flow, arch, dtype): budget
    for flow, budgets in {
        PER_ROW: (30.5, 24.5, 20.5, 16.5),
        PER_ROWS: (34.5, 28.5, 24, 19.5),
        PER_CLASS: (33, 27, 22.5, 18),
    }.items()
    for arch, pair in {"sm_80": budgets[:2], "sm_90": budgets[:2], "sm_100": budgets[2:]}.items()
    for dtype, budget in zip(("fp32", "bf16", "fp16"), (*pair, pair[1]))
}
# Through dense targets of 0 and 1, by the type of targets that takes least. What is above the 36, 31, 25 and 21 that
# were aimed at is spent once for eight logits: the vote whether the warp may go on, the targets' type, addresses.
DENSE = f"{HOT}, dense 0/1"
DENSE_LOGITS, MOST_OF_DENSE = 8, 450  # of a pass: logits, as csrc/cuda/dense_stream.cuh has them, and instructions
DENSE_BUDGET = {("sm_80", "fp32"): 39.5, ("sm_90", "fp32"): 39, ("sm_80", "bf16"): 32.5, ("sm_90", "bf16"): 32.5}
# Losses whose positives and dense targets are a function, which the careful path calls, as that over levels does: its
# loops cannot be told from others.
CALLED = (sass.LOSSES["FocalNegatives"], sass.SMOOTHED)
REGISTERS, KERNELS, LIBRARY_BYTES = 64, 200, 12_000_000


FP32 = ("FFMA", "FADD", "FMUL", "HFMA2")
ALU = ("FMNMX", "FSEL", "FSETP", "LOP3", "ISETP", "SEL", "PRMT", "SHF", "F2FP", "MOV", "VIADD", "IMNMX", "VIMNMX")


@dataclass(frozen=True)
class Row:
    """The hot loop of one kernel in one flow, per logit."""

    arch: str
    dtype: str
    targets: str
    gamma: str
    flow: str
    registers: int
    stack: int
    logits: int  # a pass
    loop: Loop

    def per_logit(self, *prefixes: str) -> float:
        return (self.loop.count(*prefixes) if prefixes else self.loop.issued) / self.logits

    @property
    def rank(self) -> tuple[int, int]:
        """The greater of two rows with the same name counts. Of the careful path the cheaper: the other is the loop
        over tiles around it."""
        return self.logits, -self.loop.issued if self.flow.startswith(CAREFUL) else self.loop.issued

    @property
    def is_focal(self) -> bool:
        return self.targets in sass.TARGETS.values()

    @property
    def has_budget(self) -> bool:
        return self.targets in ("ids", "ids or dense") and self.gamma == "2" and self.flow == HOT

    @property
    def budget(self) -> float | None:
        if self.targets == sass.PYRAMID and self.gamma == "2" and self.flow == HOT:
            return PYRAMID_BUDGET.get((self.arch, self.dtype))
        if self.gamma == "2" and self.targets == "ids or dense" and self.flow == DENSE:
            return DENSE_BUDGET.get((self.arch, self.dtype))
        if self.gamma == "2" and self.targets.startswith("ids or dense,"):
            return FACTOR_BUDGET.get((self.flow, self.arch, self.dtype))
        return BUDGET.get((self.arch, self.dtype)) if self.has_budget else None

    @property
    def mufu(self) -> float:
        return self.per_logit("MUFU")

    @property
    def fp32(self) -> float:
        """Lane operations; a packed f32x2 instruction is two."""
        return self.per_logit(*FP32) + self.per_logit("FFMA2", "FADD2", "FMUL2")


def flow_of(loop: Loop) -> str | None:
    """Which results a loop over logits makes, told by its loads and stores; None for the rescue of +inf and NaN, and
    for the loop over tiles."""
    if loop.count("VOTE"):
        return DENSE if loop.vector_stores and loop.count("VOTE") == 1 and not loop.finds_rows else None
    if not loop.vector_loads:
        # Of each logit the careful path reads at most a label in shared memory; the rescue reads its tile's offset too,
        # or stores nothing.
        return CAREFUL if 0 < loop.finds_rows <= loop.stores and loop.count("LDS") <= loop.finds_rows else None
    if loop.count("LDS"):
        return PER_CLASS if loop.count("LDS.128") else PER_ROW if loop.count("LDS") == loop.vector_loads else PER_ROWS
    if loop.vector_stores == 0:
        return "loss alone"
    if loop.vector_loads == 2 * loop.vector_stores:
        return "gradient times a map"
    return HOT if loop.vector_loads == loop.vector_stores else None


def is_of(flow: str, targets: str) -> bool:
    """Whether a kernel can have the loop: factors in shared memory are those of its name, what else is read there is
    what a tile shares. Dense targets stream beside no factors, in rows."""
    if flow == DENSE:
        return not targets.startswith(sass.PYRAMID) and ", factors" not in targets
    if flow in (PER_ROW, PER_ROWS):
        return targets.endswith(sass.OF_ROWS)
    return flow != PER_CLASS or targets.endswith(sass.OF_CLASSES)


def is_dense_stream(arch: str, dtype: str, gamma: str, logits: int, loop: Loop) -> bool:
    """Whether it is the stream of dense targets and no loop over tiles, where the two can be told apart: at gamma 2, on
    the architectures that have a budget."""
    told = gamma == "2" and (arch, dtype) in DENSE_BUDGET
    return told and logits == DENSE_LOGITS and loop.issued <= MOST_OF_DENSE


def careful_flows(targets: str) -> tuple[str, ...]:
    """A kernel for both kinds of targets has a careful path for each. Beside other factors it is the same text as
    beside one."""
    if targets in CALLED or targets.startswith(sass.PYRAMID) or targets.endswith((sass.OF_ROWS, sass.OF_CLASSES)):
        return ()
    return (CAREFUL,) if targets in ("ids", "dense") else (f"{CAREFUL}, ids", f"{CAREFUL}, dense")


def streams(targets: str) -> tuple[str, ...]:
    """The loops that a kernel must have to keep its budgets."""
    if targets.endswith(sass.OF_ROWS):
        return HOT, PER_ROW, PER_ROWS
    return (PER_CLASS,) if targets.endswith(sass.OF_CLASSES) else (HOT,)


def rows(kernels: list[Kernel]) -> list[Row]:
    """One row per kernel and flow: its longest unrolled loop; of equal ones (gradient, loss map) the dearer, which is
    the gradient's."""
    best: dict[tuple[str, ...], Row] = {}
    for kernel in kernels:
        if kernel.identity is None or kernel.identity[0] not in SIZE:
            continue
        dtype, targets, gamma = kernel.identity
        for loop in kernel.loops:
            if (flow := flow_of(loop)) is None or (flow == CAREFUL and not careful_flows(targets)):
                continue
            if not is_of(flow, targets):
                continue
            vectors = loop.vector_stores if flow == DENSE else loop.vector_loads // (2 if "map" in flow else 1)
            logits = loop.finds_rows if flow == CAREFUL else vectors * 16 // SIZE[dtype]
            if flow == CAREFUL and len(careful_flows(targets)) > 1:
                flow += ", ids" if loop.count("LDS") else ", dense"  # a row's label comes from shared memory
            if flow == DENSE and not is_dense_stream(kernel.arch, dtype, gamma, logits, loop):
                continue
            row = Row(
                kernel.arch, dtype, targets, gamma, flow, kernel.registers, kernel.stack + kernel.local, logits, loop
            )
            key = (row.arch, dtype, targets, gamma, flow)
            if key not in best or row.rank > best[key].rank:
                best[key] = row
    return sorted(best.values(), key=lambda r: (int(r.arch[3:].rstrip("a")), r.dtype, r.targets, r.gamma, r.flow))


# Bytes: four registers of a kernel of halves may lie on the stack, outside the loops over logits.
HALVES, STACK = ("bf16", "fp16"), 16


def violations(kernels: list[Kernel], library_bytes: int) -> list[str]:
    """What exceeds a limit, in sentences; empty is good."""
    found = [
        f"{k.arch} {k.name}: {k.stack} bytes of stack, {k.local} local"
        for k in kernels
        if k.identity and k.identity[0] != "fp64" and k.stack + k.local > (STACK if k.identity[0] in HALVES else 0)
    ]
    found += [
        f"{k.arch} softmax over planes: {k.registers} registers, {k.stack + k.local} bytes of stack and local memory; "
        f"at most {REGISTERS} and none"
        for k in kernels
        if sass.SOFTMAX_OVER_PLANES in k.name and (k.registers > REGISTERS or k.stack + k.local > 0)
    ]
    found += [
        f"{k.arch} {k.name}: of no loss that bench/sass.py knows"
        for k in kernels
        if k.identity is None and sass.OF_A_LOSS.search(k.name)
    ]
    for arch in {k.arch for k in kernels}:
        if (count := sum(k.arch == arch for k in kernels)) > KERNELS:
            found.append(f"{arch}: {count} kernels, at most {KERNELS}")
    if library_bytes > LIBRARY_BYTES:
        found.append(f"the library has {library_bytes} bytes, at most {LIBRARY_BYTES}")
    for row in rows(kernels):
        where = f"{row.arch} {row.dtype} {row.targets} gamma {row.gamma}, {row.flow}"
        if row.registers > REGISTERS and row.targets.startswith("ids"):
            found.append(f"{where}: {row.registers} registers, at most {REGISTERS}")
        is_stream = not row.flow.startswith(CAREFUL)
        if is_stream and row.mufu > (
            most := MUFU[row.gamma] + (MUFU_OF_CLIP if row.targets.startswith(sass.CLIPPED) else 0)
        ):
            found.append(f"{where}: {row.mufu} MUFU per logit, at most {most}")
        if is_stream and (row.loop.calls or row.loop.count("LDL", "STL", "I2F", "F2I.")):
            found.append(f"{where}: a call, local memory or an integer division in the loop")
        if row.budget and row.per_logit() > row.budget:
            found.append(f"{where}: {row.per_logit():.1f} instructions per logit, at most {row.budget}")
    wanted = {
        (k.arch, *k.identity, flow)
        for k in kernels
        if k.identity and k.identity[0] in SIZE
        for flow in (*streams(k.identity[1]), *careful_flows(k.identity[1]))
    }
    # The loop of factors per class is laid out in another way on sm_75, and is not told.
    wanted = {w for w in wanted if w[0] != "sm_75" or "factor per class" not in w[-1]}
    seen = {(r.arch, r.dtype, r.targets, r.gamma, r.flow) for r in rows(kernels)}
    return found + [
        f"{' '.join(missing[:3])} gamma {missing[3]}: no loop found for {missing[4]}"
        for missing in sorted(wanted - seen)
    ]


def records(kernels: list[Kernel], library: Path) -> list[dict[str, object]]:
    """The rows of bench/results/kernels.csv: every loop, and every kernel in which none is told."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT
    ).stdout.strip()
    counts = Counter(k.arch for k in kernels)
    found, told = rows(kernels), {(r.arch, r.dtype, r.targets, r.gamma) for r in rows(kernels)}
    every: list[dict[str, object]] = [
        {
            "arch": row.arch,
            "logits": row.dtype,
            "targets": row.targets,
            "gamma": row.gamma,
            "flow": row.flow,
            "instructions": f"{row.per_logit():.1f}",
            "budget": row.budget or "",
            "mufu": f"{row.mufu:.0f}",
            "fp32": f"{row.fp32:.1f}",
            "alu": f"{row.per_logit(*ALU):.1f}",
            "registers": row.registers,
            "spill": row.stack,
        }
        for row in found
    ]
    for k in sorted(kernels, key=lambda k: (int(k.arch[3:].rstrip("a")), k.name)):
        dtype, targets, gamma = k.identity or ("", k.name, "")
        if (k.arch, dtype, targets, gamma) not in told:
            cells = {"arch": k.arch, "logits": dtype, "targets": targets, "gamma": gamma}
            every.append({**cells, "registers": k.registers, "spill": k.stack + k.local})
    origin = {"commit": commit, "megabytes": f"{library.stat().st_size / 1e6:.1f}"}
    return [{**row, "kernels": f"{row['arch']}:{counts[str(row['arch'])]}", **origin} for row in every]


COLUMNS = (
    *("arch", "logits", "targets", "gamma", "flow", "instructions", "budget", "mufu", "fp32", "alu"),
    *("registers", "spill", "kernels", "commit", "megabytes"),
)


def write(path: Path, table: list[dict[str, object]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the compiled CUDA kernels cost.")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)}; make readme shows it")
    options = parser.parse_args()
    kernels = sass.read(options.library)
    if not kernels:
        raise SystemExit(f"{options.library} has no CUDA kernels; build with nvcc on the PATH")
    if options.write:
        write(RESULTS, records(kernels, options.library))
    found = violations(kernels, options.library.stat().st_size)
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()

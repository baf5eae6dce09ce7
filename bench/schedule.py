# Owns: how many cycles machine code takes a scheduler and its warps, by the compiler's stall counts and barriers.
# Must not know: kernels, workloads, the memory's bandwidth. A load from memory takes the latency that the caller gives.
from __future__ import annotations

from dataclasses import dataclass

from .chips import Chip
from .sass import Instruction

Trace = list[Instruction]

SCHEDULERS = 4  # of a multiprocessor, each with a quarter of its lanes
WARP = 32
MEMORY = ("LDG", "LD.E")
RATIO_OF_WIDTH = {".128": 16, ".64": 8, ".U16": 2, ".S16": 2, ".U8": 1, ".S8": 1}
L1_BYTES = 128  # that a multiprocessor's loads and stores move in a cycle

PIPES = {
    "fp32": ("FFMA", "FADD", "FMUL"),
    "mufu": ("MUFU", "F2F", "F2I", "I2F", "FRND", "POPC", "FLO", "BREV"),
    "memory": ("LD", "ST", "SHFL", "ATOM", "RED"),
    "half": ("HFMA2", "HADD2", "HMUL2"),
    "branch": ("BRA", "BSYNC", "BSSY", "BRX", "EXIT", "WARPSYNC", "CALL", "BAR", "VOTE"),
}
# Cycles from issue to the fall of an instruction's barrier, within a few cycles of what microbenchmarks report.
LATENCY = {"LDS": 30, "MUFU": 22, "F2": 20, "I2F": 20, "LDC": 36, "ULDC": 36, "S2": 28, "SHFL": 25, "FLO": 20}
OPERANDS_READ = 12
TAKEN = 8  # cycles that a jump back costs beyond its stall count


def width(opcode: str) -> int:
    """Bytes that a lane moves."""
    return next((n for suffix, n in RATIO_OF_WIDTH.items() if suffix in opcode), 4)


def pipe(opcode: str, chip: Chip) -> tuple[str, float]:
    """The pipe of one scheduler that takes the instruction, and the cycles for which it takes no other."""
    name = next((name for name, prefixes in PIPES.items() if opcode.startswith(prefixes)), "alu")
    lanes = {"fp32": chip.fp32, "mufu": chip.mufu, "half": 128, "branch": 128, "alu": chip.alu}
    if name == "memory":
        return name, max(1.0, WARP * width(opcode) * SCHEDULERS / L1_BYTES)
    packed = 2 if opcode.startswith(("FFMA2", "FADD2", "FMUL2")) else 1
    return name, packed * WARP * SCHEDULERS / lanes[name]


def result_after(opcode: Instruction, latency: float) -> float:
    """A load with a predicate is of an argument that a call may leave out, and is left out."""
    if opcode.startswith(MEMORY) and not opcode.predicated:
        return latency
    return next((cycles for prefix, cycles in LATENCY.items() if opcode.startswith(prefix)), OPERANDS_READ)


def cycles(trace: Trace, chip: Chip, latency: float, warps: int = 1, passes: int = 3) -> float:
    """Cycles of one pass of `trace` by each of a scheduler's `warps`; in each cycle one warp that can issues."""
    steps = [
        (*pipe(op, chip), op.stall, op.waits, op.result_barrier, op.operand_barrier, result_after(op, latency))
        for op in trace
    ]
    free = dict.fromkeys((step[0] for step in steps), 0.0)
    barriers = [[0.0] * 8 for _ in range(warps)]
    ready, at, done = [0.0] * warps, [0] * warps, [0] * warps
    clock = first = 0.0
    live = list(range(warps))
    while live:
        start, warp = min((max(ready[w], free[steps[at[w]][0]], clock), w) for w in live)
        name, taken, stall, _, result, operands, after = steps[at[warp]]
        free[name], clock = start + taken, start + 1
        for barrier, delay in ((result, after), (operands, OPERANDS_READ)):
            barriers[warp][barrier] = max(barriers[warp][barrier], start + delay)
        barriers[warp][7] = 0  # none
        ready[warp] = start + stall
        at[warp] += 1
        if at[warp] == len(steps):
            at[warp], done[warp], ready[warp] = 0, done[warp] + 1, ready[warp] + TAKEN
            if done[warp] == 1:
                first = max(first, ready[warp])
            if done[warp] == passes:
                live.remove(warp)
        ready[warp] = max([ready[warp], *(barriers[warp][b] for b in steps[at[warp]][3])])
    return (max(ready) - first) / (passes - 1) if warps == 1 and passes > 1 else max(ready) / passes


@dataclass(frozen=True)
class Stage:
    """How often a warp waits for memory in a row, and cycles besides: of the warp alone, of its scheduler."""

    trips: int
    alone: float
    issue: float


def stage(trace: Trace, chip: Chip) -> Stage:
    """By the code alone: a load's latency counts as often as the time grows with it."""
    near, far = (cycles(trace, chip, latency) for latency in (500, 1500))
    trips = round((far - near) / 1000)
    busy = cycles(trace, chip, 0, warps=2 * SCHEDULERS)
    return Stage(trips, max(1.0, near - 500 * trips), busy / (2 * SCHEDULERS))


def moved(trace: Trace) -> tuple[int, int]:
    """Bytes that a warp's pass loads from memory and stores there."""
    loaded, stored = (
        sum(width(op) for op in trace if op.startswith(prefixes)) for prefixes in (MEMORY, ("STG", "ST.E"))
    )
    return WARP * loaded, WARP * stored

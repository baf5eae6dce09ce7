# Owns: the model's microseconds of one kernel on one chip: what its code costs, put into the order of a call's tiles.
# Must not know: how machine code is read, how a chip is simulated (bench/stages.py, bench/simulate.py), tables.
from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from math import ceil
from pathlib import Path

from . import sass, workloads
from .chips import Chip
from .schedule import WARP, Stage, Trace, moved, stage
from .simulate import WARPS, Program, Step, bytes_per_cycle, microseconds
from .stages import Body, bodies
from .workloads import SIZE, Case, Tile

COPY = Path(__file__).with_name("copy.cu")
CLASSES_AT_ONCE = 8  # csrc/cuda/softmax_planes.cuh: of a position, whose loads are in flight
LAUNCH = 2.0  # microseconds of a launch behind another: the gap, the first blocks' start, the last ones' end
TYPES = {"fp32": "f", "bf16": "13__nv_bfloat16"}
NAMES = {
    "focal": r"focal_kernelI{}\w*?(Either|Id)Targets\w*12SigmoidFocalINS_14WholeModulatorILi2E\w*7FactorsE0E",
    "weighted": r"focal_kernelI{}\w*?(Either|Id)Targets\w*12SigmoidFocalINS_14WholeModulatorILi2E\w*7FactorsE1E",
    "asymmetric": r"focal_kernelI{}\w*?(Either|Dense)Targets\w*10AsymmetricINS_14WholeModulatorILi4E\w*7FactorsE0E",
    "pyramid": r"pyramid_kernelI{}NS_14FocalNegativesINS_14WholeModulatorILi2E",
    "softmax planes": r"softmax_planes_kernel(?#{})",
    "scale": r"scale_kernelI{}E",
}
BLOCK = WARPS * WARP


class Code:
    """The kernels of a library for one architecture, by what they are for and their logits' type."""

    def __init__(
        self, library: Path, arch: str, kinds: Iterable[str] = tuple(NAMES), dtypes: Iterable[str] = tuple(TYPES)
    ) -> None:
        names = {(kind, dtype): re.compile(NAMES[kind].format(TYPES[dtype])) for kind in kinds for dtype in dtypes}
        found = list(bodies(library, {arch}, re.compile("|".join(name.pattern for name in names.values()))))
        self.bodies = {key: next((b for b in found if name.search(b.kernel.name)), None) for key, name in names.items()}
        self.costs: dict[tuple[str, str, str, Chip], Stage] = {}

    def cost(self, kind: str, dtype: str, part: str, chip: Chip, trace: Trace) -> Stage:
        key = kind, dtype, part, chip
        if key not in self.costs:
            self.costs[key] = stage(trace, chip)
        return self.costs[key]


def resident(body: Body, chip: Chip) -> int:
    """Blocks of 256 threads that a multiprocessor holds."""
    kernel = body.kernel
    return min(
        65_536 // (ceil(kernel.registers / 8) * 8 * BLOCK),
        chip.shared * 1024 // (kernel.shared + 1024),
        chip.threads // BLOCK,
    )


def steps(cost: Stage, loaded: float, stored: float, times: int = 1) -> list[Step]:
    """A stage that waits for memory several times, one after the other, is as many steps."""
    parts = max(1, cost.trips)
    step = Step(loaded / parts, cost.alone / parts, cost.issue / parts, stored / parts)
    return [step] * parts * times


class Programs:
    """What a warp does in each kind of tile of one kernel on one chip."""

    def __init__(self, code: Code, kind: str, dtype: str, chip: Chip) -> None:
        body = code.bodies.get((kind, dtype))
        if body is None:
            raise LookupError(f"no {kind} kernel of {dtype} logits for {chip.arch}")
        self.code, self.kind, self.dtype, self.chip, self.body = code, kind, dtype, chip, body

    def cost(self, part: str, trace: Trace) -> Stage:
        return self.code.cost(self.kind, self.dtype, part, self.chip, trace)

    def of(self, tile: Tile, case: Case) -> Program:
        if self.kind == "softmax planes":
            return self.softmax(tile)
        begin, size = self.beginning(tile, case), SIZE[self.dtype]
        if tile.streams and case.dense:
            return begin + self.dense(tile, case)
        if tile.streams and (not tile.special or self.body.marks or self.kind == "pyramid"):
            return begin + self.stream(tile, case, self.body.stream[2])
        trace = self.body.careful(case.dense)
        logits = WARP * max(1, sass.Loop(Counter(trace)).finds_rows)
        cost = self.cost(f"careful, dense {case.dense}", trace)
        return begin + steps(cost, logits * (size + case.target_bytes), logits * size, ceil(tile.logits / logits))

    def dense(self, tile: Tile, case: Case) -> list[Step]:
        """Targets of long tiles are looked through first; if all are 0 the stream needs them no more."""
        found = self.body.dense_stream
        if found is None:
            raise LookupError(f"{self.body.kernel.arch} {self.body.kernel.name}: no loop takes dense targets")
        trace, one = found
        is_short = tile.logits <= workloads.SHORT_DENSE_TILE
        begin = [] if is_short else self.scan(tile.logits * case.target_bytes)
        if not tile.special and not is_short:
            return begin + self.stream(tile, case, self.body.stream[2])
        cost, stored = self.cost(f"dense {len(trace)}", trace), 8 * WARP * SIZE[self.dtype]
        loaded = stored * (1 + case.target_bytes / SIZE[self.dtype])
        full, left = divmod(tile.logits, stored // SIZE[self.dtype])
        share = left * SIZE[self.dtype] / stored
        begin += steps(cost, loaded, stored, full) + (steps(cost, loaded * share, stored * share) if left else [])
        return begin + (
            steps(self.cost("one by one", one), WARP, 0, round(case.special.rows)) if one and tile.special else []
        )

    def scan(self, count: int) -> list[Step]:
        """So many bytes of targets, by the longest loop that they fill."""
        filled = [trace for trace in self.body.scans if moved(trace)[0] <= count]
        trace = filled[-1] if filled else self.body.scans[0]
        times = ceil(count / moved(trace)[0])
        return steps(self.cost(f"scan {len(trace)}", trace), count / times, 0, times)

    def softmax(self, tile: Tile) -> Program:
        """Of planes: a label and its logit, one after the other, then two readings of the classes."""
        parts = self.body.softmax_readings(self.dtype)
        made: list[Step] = []
        for part, trace in zip(("label", "first", "between", "second", "after"), parts):
            cost, is_reading = self.cost(f"softmax {part}", trace), part in ("first", "second")
            if not is_reading:
                made += steps(cost, WARP * (8 + SIZE[self.dtype]) if part == "label" else 0, 0)
                continue
            bytes_of_all = tile.logits * SIZE[self.dtype]
            times = ceil(tile.lines / CLASSES_AT_ONCE)
            stored = bytes_of_all / times if part == "second" else 0
            made += steps(cost, bytes_of_all / times, stored, times)
        return made

    def beginning(self, tile: Tile, case: Case) -> list[Step]:
        around = self.cost("around", self.body.around_stream) if self.body.around_stream else Stage(0, 1, 1)
        checks = tile.labels > 0 and self.body.label_check is not None
        begin = steps(around, tile.labels * 8 if checks else 0, 0)
        if tile.labels and self.body.labels and (not checks or tile.special or not tile.streams):
            labels = self.cost("labels", min(self.body.passes(self.body.labels), key=len))
            begin += steps(labels, min(WARP, tile.labels) * 8, 0, ceil(tile.labels / WARP))
        if case.weight and self.body.weights:
            weights = self.cost("weights", min(self.body.passes(self.body.weights), key=len))
            begin += steps(weights, min(WARP, tile.labels) * 4, 0, ceil(tile.labels / WARP))
        return begin

    def stream(self, tile: Tile, case: Case, trace: Trace) -> list[Step]:
        cost, (loaded, stored) = self.cost(f"stream {len(trace)}", trace), moved(trace)
        vectors = ceil(tile.columns / (workloads.VECTOR[self.dtype] * WARP)) * tile.lines
        in_flight = stored // (16 * WARP)
        whole, left = divmod(vectors, in_flight)
        filled = tile.logits / (vectors * workloads.VECTOR[self.dtype] * WARP)
        loaded, stored = loaded * filled, stored * filled
        one = Stage(1, cost.alone / in_flight, cost.issue / in_flight)
        made = steps(cost, loaded, stored, whole) + steps(one, loaded / in_flight, stored / in_flight, left)
        return made + (self.special(case, tile) if tile.special else [])

    def heed(self, tile: Tile) -> list[Step]:
        """Of planes: ignored anchors are masked, a vector with a positive goes one by one."""
        size, heeding = workloads.VECTOR[self.dtype], self.body.heeding
        if not heeding:
            raise LookupError(f"{self.body.kernel.arch} {self.body.kernel.name}: special tiles of planes do not stream")
        once, turn = (self.cost(part, trace) for part, trace in zip(("heed", "turn"), heeding))
        first, other = (self.cost(part, trace) for part, trace in zip(("first", "other"), self.body.rescue))
        # on average: less than one vector of a tile
        waits = sum(cost.trips * count for cost, count in ((first, 1), (other, size - 1))) * self.chip.latency
        alone, issue = (getattr(first, part) + (size - 1) * getattr(other, part) for part in ("alone", "issue"))
        return [
            Step(0, once.alone + size * turn.alone, once.issue + size * turn.issue),
            Step(0, tile.one_by_one * (alone + waits), tile.one_by_one * issue),
        ]

    def special(self, case: Case, tile: Tile) -> list[Step]:
        size = workloads.VECTOR[self.dtype]
        if self.kind == "pyramid":
            return self.heed(tile)
        times = case.special.rows, case.special.touched(case.classes, WARP * size), 1
        parts = zip(("marks", "touched vectors", "positives"), self.body.marks or (), times)
        costs = [(self.cost(part, trace), count) for part, trace, count in parts if trace]
        return [Step(0, cost.alone * count, cost.issue * count) for cost, count in costs]


def main_kernel(code: Code, chip: Chip, dtype: str, case: Case) -> float:
    """Microseconds, by the model, from the first block to the last byte."""
    programs = Programs(
        code, "pyramid" if case.pyramid_images else "weighted" if case.weight else case.loss, dtype, chip
    )
    known: dict[Tile, Program] = {}
    tiles = workloads.tiles(case, dtype)
    for tile in set(tiles):
        known[tile] = programs.of(tile, case)
    return microseconds(
        chip, resident(programs.body, chip), [known[tile] for tile in tiles], workloads.blocks(len(tiles))
    )


def streaming(body: Body, chip: Chip, vectors: int, most_blocks: int) -> float:
    """Of a kernel that is one loop through so many vectors: the copy, a gradient scaled by a factor other than 1."""
    cost, (loaded, stored) = stage(body.stream[2], chip), moved(body.stream[2])
    count = ceil(vectors * 16 / loaded)
    blocks = min(ceil(count / WARPS), most_blocks)
    return microseconds(chip, resident(body, chip), [steps(cost, loaded, stored)] * count, blocks)


def bytes_us(chip: Chip, count: float) -> float:
    return count / bytes_per_cycle(chip) / chip.ghz / 1e3


def copy_body(arch: str) -> Body:
    """Of the control, compiled here: nvcc must be on the PATH."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "copy.fatbin"
        subprocess.run(
            ["nvcc", "-fatbin", "-gencode", f"arch=compute_{arch[3:]},code={arch}", "-o", str(made), str(COPY)],
            check=True,
            capture_output=True,
        )
        return next(bodies(made, {arch}, re.compile("copy_kernel")))


def control(chip: Chip, megabytes: int = 258) -> float:
    """A copy's predicted time over that of its bytes at the bandwidth that a copy reaches."""
    body = copy_body(chip.arch)
    count = megabytes * 1e6 / 16
    return streaming(body, chip, int(count), chip.processors * resident(body, chip)) / bytes_us(
        chip, 2 * megabytes * 1e6
    )


def rest_of_call(code: Code, chip: Chip, dtype: str, case: Case) -> tuple[float, float]:
    """Microseconds beside the main kernel: of a sum divided by its positives and its backward; and those that an
    upstream factor other than 1 adds."""
    scan = 0 if case.dense else bytes_us(chip, 8 * case.rows) + LAUNCH
    body = code.bodies.get(("scale", dtype))
    scaled = streaming(body, chip, case.numel * SIZE[dtype] // 16, workloads.MOST_BLOCKS) if body else float("nan")
    return scan + (3 + (case.groups > 1)) * LAUNCH, scaled

# Owns: blocks, warps and schedulers of a chip that share its memory: when the last byte of a kernel is written.
# Must not know: machine code, workloads.
from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from .chips import Chip
from .schedule import SCHEDULERS

REACHABLE = 0.9  # of the peak bandwidth: a copy reaches 4.3 of an H200's 4.8 TB/s
LAUNCH_OF_BLOCK = 300  # cycles from a block's end to its successor's first instruction
WARPS = 8  # of a block
MOST_STEPS = 60_000  # of all warps; of a longer kernel a share of the multiprocessors is simulated


@dataclass(frozen=True)
class Step:
    """Load, wait, compute, store: bytes of a warp, cycles of the warp alone and of its scheduler."""

    loaded: float
    alone: float
    issue: float
    stored: float = 0.0


Program = Sequence[Step]  # of a warp, from a tile's first instruction to its last


def bytes_per_cycle(chip: Chip) -> float:
    return REACHABLE * chip.memory * 1e12 / (chip.ghz * 1e9)


def microseconds(chip: Chip, resident: int, tiles: Sequence[Program], blocks: int) -> float:
    """Of a kernel of `blocks` blocks whose warps take `tiles` in turn; `resident` blocks fit a multiprocessor."""
    steps = sum(map(len, tiles))
    wanted = min(steps // MOST_STEPS, chip.processors // 8)
    share = max(n for n in range(1, max(wanted, 1) + 1) if chip.processors % n == 0)
    if share > 1:  # of so many blocks' tiles one's, on as many fewer multiprocessors
        tiles = [tile for first in range(0, len(tiles), WARPS * share) for tile in tiles[first : first + WARPS]]
        blocks = max(1, round(blocks / share))
    return Run(chip, chip.processors // share, resident, tiles, blocks).cycles() / chip.ghz / 1e3


class Run:
    def __init__(self, chip: Chip, processors: int, resident: int, tiles: Sequence[Program], blocks: int) -> None:
        self.processors = processors
        self.rate = bytes_per_cycle(chip) * self.processors / chip.processors
        self.latency, self.tiles, self.blocks = chip.latency, tiles, blocks
        self.slots = min(blocks, self.processors * resident)
        self.bus = 0.0  # when the memory is free again
        self.free = [0.0] * (self.processors * SCHEDULERS)
        self.events: list[tuple[float, int, int, bool]] = []  # time, order, warp, whether its data is there
        self.order = 0
        self.next_block = 0
        self.running = [0] * self.slots  # warps of the block in each slot
        self.tile, self.step = [0] * (self.slots * WARPS), [0] * (self.slots * WARPS)

    def cycles(self) -> float:
        for slot in range(self.slots):
            self.start(slot, 0.0)
        end = 0.0
        while self.events:
            time, _, warp, arrived = heapq.heappop(self.events)
            end = time
            (self.compute if arrived else self.go_on)(warp, time)
        return max(end, self.bus)

    def push(self, time: float, warp: int, arrived: bool) -> None:
        self.order += 1
        heapq.heappush(self.events, (time, self.order, warp, arrived))

    def use_bus(self, time: float, count: float) -> float:
        self.bus = max(self.bus, time) + count / self.rate
        return self.bus

    def start(self, slot: int, time: float) -> None:
        if self.next_block >= self.blocks:
            return
        block, self.next_block, self.running[slot] = self.next_block, self.next_block + 1, WARPS
        for warp in range(slot * WARPS, slot * WARPS + WARPS):
            self.tile[warp], self.step[warp] = block * WARPS + warp % WARPS, -1
            self.push(time + LAUNCH_OF_BLOCK, warp, False)

    def go_on(self, warp: int, time: float) -> None:
        """The step before is computed: its results leave, the next one's data is asked for."""
        index = self.tile[warp]
        if index < len(self.tiles) and self.step[warp] >= 0 and (stored := self.tiles[index][self.step[warp]].stored):
            self.use_bus(time, stored)
        self.step[warp] += 1
        if index < len(self.tiles) and self.step[warp] == len(self.tiles[index]):
            self.tile[warp] += self.blocks * WARPS
            index, self.step[warp] = self.tile[warp], 0
        if index >= len(self.tiles):
            slot = warp // WARPS
            self.running[slot] -= 1
            if not self.running[slot]:
                self.start(slot, time)
            return
        step = self.tiles[index][self.step[warp]]
        self.push(self.use_bus(time, step.loaded) + self.latency if step.loaded else time, warp, True)

    def compute(self, warp: int, time: float) -> None:
        """Its scheduler takes warps in the order in which their data came."""
        step = self.tiles[self.tile[warp]][self.step[warp]]
        scheduler = warp // WARPS % self.processors * SCHEDULERS + warp % SCHEDULERS
        begin = max(time, self.free[scheduler])
        self.free[scheduler] = begin + step.issue
        self.push(begin + max(step.alone, step.issue), warp, False)

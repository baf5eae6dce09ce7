# Owns: the stages by which a warp goes through a tile, found in a kernel's machine code, and what each costs a chip.
# Must not know: workloads, chips' bandwidth, times.
from __future__ import annotations

import heapq
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import sass
from .schedule import MEMORY, Trace, moved
from .sass import Loop


@dataclass(eq=False)
class Body:
    """A kernel's graph of blocks, with a few of its loops by what they do."""

    opcodes: list[Trace]
    successors: list[list[int]]
    kernel: sass.Kernel

    @cached_property
    def loops(self) -> list[tuple[int, int]]:
        """(header, latch) of each, in the order of the text."""
        return sorted(
            (header, latch) for latch, targets in enumerate(self.successors) for header in targets if header <= latch
        )

    def softmax_readings(self, dtype: str) -> list[Trace]:
        """Of softmax over planes, whose kernel tells the type of the logits at run time: up to the first loop through
        the classes, a pass of it, between the two, a pass of the second, behind it."""
        others = ("LDG.E.U16", "STG.E.U16") if dtype == "fp32" else ("LDG.E", "STG.E")
        loops = [loop for loop in self.loops if self.has(loop, "LDG") >= 8 and self.has(loop, "MUFU.EX2") >= 8]
        around, (first, end), (second, last) = loops
        own = Body(
            self.opcodes,
            [[to for to in following if self.moves_no(to, others)] for following in self.successors],
            self.kernel,
        )
        whole = [max(own.passes(loop), key=lambda t: Loop(Counter(t)).count("MUFU.EX2")) for loop in loops[1:]]
        for op in (op for trace in whole for op in trace if op.startswith(MEMORY)):
            op.predicated = False  # of a class that is there
        label = next(b for b in range(around[0], first) if self.has((b, b), "LDG.E.64"))
        formula = next(b for b in range(end, second) if self.has((b, b), "MUFU.LG2", "MUFU.RCP"))
        before, between, after = (
            [op for start, to in parts for op in own.way(start, to) or []]
            for parts in (
                [(around[0], label), (label, first)],
                [(end + 1, formula), (formula, second)],
                [(last + 1, around[1])],
            )
        )
        return [before, whole[0], between, whole[1], after]

    def moves_no(self, block: int, opcodes: tuple[str, ...]) -> bool:
        """Whether it is no block of a type of logits that these load and store: a single load may be of a label."""
        moving = [op for op in self.opcodes[block] if op in ("LDG.E", "LDG.E.U16", "STG.E", "STG.E.U16")]
        return not (len(moving) > 1 or moving[:1] in (["STG.E"], ["STG.E.U16"])) or not set(moving) & set(opcodes)

    def has(self, loop: tuple[int, int], *prefixes: str) -> int:
        return sum(op.startswith(prefixes) for block in self.opcodes[loop[0] : loop[1] + 1] for op in block)

    def passes(self, loop: tuple[int, int]) -> list[Trace]:
        return [self.trace(path) for path in sass.cheapest(self.opcodes, self.successors, *loop)]

    def trace(self, path: list[int]) -> Trace:
        return [op for block in path for op in self.opcodes[block]]

    def way(self, start: int, end: int) -> Trace | None:
        """The least code from the start of one block to before another that stands later; None if no way goes there."""
        queue, seen = [(0, start, [])], set()
        while queue:
            cost, block, path = heapq.heappop(queue)
            if block == end:
                return self.trace(path)
            if block in seen:
                continue
            seen.add(block)
            for following in self.successors[block]:
                if block < following <= end:
                    heapq.heappush(queue, (cost + len(self.opcodes[block]), following, [*path, block]))
        return None

    @cached_property
    def stream(self) -> tuple[int, int, Trace]:
        """The longest loop that stores what it loads; of equal ones the dearer, which is the gradient's."""
        found = self.stream_with(0.0)
        if found is None:
            raise LookupError(f"{self.kernel.arch} {self.kernel.name}: no loop streams vectors")
        return found

    def stream_with(self, more: float) -> tuple[int, int, Trace] | None:
        """As `stream`, of the loops that load `more` bytes beside each that they store: of targets."""
        best = None
        for header, latch, trace in self.vector_loops:
            loaded, stored = moved(trace)
            if loaded == stored * (1 + more) and (
                best is None or (stored, len(trace)) > (moved(best[2])[1], len(best[2]))
            ):
                best = header, latch, trace
        return best

    @cached_property
    def dense_stream(self) -> tuple[Trace, Trace] | None:
        """The loop through targets that are not all 0, which votes whether it may go on: its pass by the least code, of
        whichever type of targets, and the pass for one target apart, of a loss that does not mirror."""
        inside = [loop for loop in self.loops if self.tile[0] < loop[0] and loop[1] < self.tile[1]]
        for loop in inside:
            for trace in self.passes(loop):
                counts = Loop(Counter(trace))
                if counts.count("VOTE") and counts.count("MUFU.EX2") >= 8 and counts.stores and counts.vector_loads:
                    own = [other for other in inside if loop[0] < other[0] and other[1] < loop[1]]
                    alone = [other for other in own if self.has(other, "MUFU.EX2")]
                    return trace, max((t for other in alone for t in self.passes(other)), key=len, default=[])
        return None

    @cached_property
    def vector_loops(self) -> list[tuple[int, int, Trace]]:
        cheapest = [(*loop, trace) for loop in self.loops for trace in self.passes(loop)[:1]]
        return [
            found
            for found in cheapest
            if Loop(Counter(found[2])).vector_stores and not Loop(Counter(found[2])).count("VOTE", "LDS")  # one factor
        ]

    def careful(self, dense: bool) -> Trace:
        """The loop that goes element by element: it multiplies for the high word of an index, and loads no vector. Of
        two such loops that of ids reads shared memory more."""
        found = []
        for loop in self.loops:
            traces = [
                t
                for t in self.passes(loop)
                if Loop(Counter(t)).count("MUFU.EX2") and not Loop(Counter(t)).count("VOTE")
            ]
            if not traces or not self.has(loop, "IMAD.HI") or self.has(loop, "LDG.E.128"):
                continue
            trace = min(traces, key=lambda t: sass.incompleteness(Loop(Counter(t))))
            counts = Loop(Counter(trace))
            if counts.finds_rows:
                found.append((counts.count("LDS") / counts.finds_rows, trace))
        if not found:
            raise LookupError(f"{self.kernel.arch} {self.kernel.name}: no loop goes element by element")
        return (min if dense else max)(found, key=lambda f: f[0])[1]

    @cached_property
    def rescue(self) -> tuple[Trace, Trace]:
        """Inside the stream: a vector whose logits go one by one with its first logit, and any other logit of it."""
        header, latch, _ = self.stream
        inside = [loop for loop in self.loops if header < loop[0] and loop[1] < latch]
        computing = [loop for loop in inside if self.has(loop, "MUFU.EX2") and not self.has(loop, "LDG.E.128")]
        if len(computing) < 2:
            raise LookupError(f"{self.kernel.arch} {self.kernel.name}: no loop goes through a vector's logits")
        (outer, end), one = computing[:2]
        finding = [self.opcodes[a] for a, b in inside if outer < a == b < end and a != one[0]]
        first = max(self.passes((outer, end)), key=len)
        return first, max(self.passes(one), key=len) + [op for block in finding for op in block]

    @cached_property
    def tile(self) -> tuple[int, int]:
        """The loop over tiles: the smallest around the stream that is no part of it."""
        header, latch, _ = self.stream
        around = [(a, b) for a, b in self.loops if a < header and b > latch and not self.has((a, b), "EXIT")]
        return min(around, key=lambda loop: loop[1] - loop[0], default=(header, latch))

    @cached_property
    def scans(self) -> list[Trace]:
        """Loops that read vectors and compute nothing, the shortest first: whether a tile's dense targets are all 0."""
        inside = [loop for loop in self.loops if self.tile[0] < loop[0] and loop[1] < self.stream[0]]
        vectors = [loop for loop in inside if self.has(loop, "LDG.E.128") and not self.has(loop, "MUFU", "ST")]
        return sorted((trace for loop in vectors for trace in self.passes(loop)[:1]), key=len)

    @cached_property
    def labels(self) -> tuple[int, int] | None:
        """The loop that loads labels and puts them into shared memory."""
        first, last = self.tile[0], self.stream[0]
        found = [
            (a, b)
            for a, b in self.loops
            if first <= a and b < last and self.has((a, b), "STS") and self.has((a, b), *MEMORY)
        ]
        return next((loop for loop in found if not self.has(loop, "MUFU")), None)

    @cached_property
    def label_check(self) -> int | None:
        """The block that loads several labels at once; where all are background a tile reads no more."""
        if "pyramid_kernel" not in self.kernel.name:
            return None
        first, last = self.tile[0], self.stream[0]
        found = (b for b in range(first, last) if Loop(Counter(self.opcodes[b])).count("LDG.E.64") >= 4)
        return next(found, None)

    @cached_property
    def heeding(self) -> tuple[Trace, Trace] | None:
        """What a tile of planes with special labels does after reading them: once, and for each of a lane's labels."""
        if not self.labels:
            return None
        between = [loop for loop in self.loops if self.labels[1] < loop[0] and loop[1] < self.stream[0]]
        loops = [a for a, b in between if a == b and not self.has((a, b), *MEMORY, "MUFU")]
        if not loops:
            return None
        block = loops[-1]
        parts = self.way(self.labels[1], block), self.way(block + 1, self.stream[0])
        return [op for part in parts for op in part or []], self.opcodes[block]

    @cached_property
    def weights(self) -> tuple[int, int] | None:
        """The loop that reads the weights of a tile's rows."""
        first = self.labels[1] if self.labels else self.tile[0]
        found = [loop for loop in self.loops if first < loop[0] and loop[1] < self.stream[0]]
        plain = [
            loop
            for loop in found
            if self.has(loop, *MEMORY) and not self.has(loop, "LDG.E.128", "STG", "MUFU", "FLO", "UFLO")
        ]
        return plain[0] if plain else None

    @cached_property
    def around_stream(self) -> Trace:
        """What a tile costs beside its stream and its labels' loop."""
        header, latch, _ = self.stream
        if self.tile == (header, latch):
            return []
        stop = self.labels or (header, header)
        if self.label_check is not None:
            stop = self.label_check, self.label_check
        parts = [
            self.way(self.tile[0], stop[0]),
            self.way(stop[1], header) if stop[0] != header else [],
            self.way(latch, self.tile[1]),
        ]
        return [op for part in parts for op in part or []] + self.opcodes[self.tile[1]]

    @cached_property
    def marks(self) -> tuple[Trace, Trace, Trace] | None:
        """Where tiles with special rows stream, what these cost beside it: a row's marks, a vector that one touches,
        and the positives of 32 rows. None where such tiles do not stream."""
        header, latch, _ = self.stream
        inside = [loop for loop in self.loops if self.tile[0] < loop[0] and loop[1] < self.tile[1]]
        marking = [loop for loop in inside if self.has(loop, "FLO", "UFLO") and loop[1] < header]
        touching = [
            loop
            for loop in inside
            if header <= loop[0] and loop[1] <= latch and self.has(loop, "LDS") and not self.has(loop, "MUFU")
        ]
        positives = [
            loop
            for loop in inside
            if loop[0] > latch and self.has(loop, "LDS", "MUFU.EX2") and not self.has(loop, "LDG.E.128", "IMAD.HI")
        ]
        if not marking:
            return None
        longest = [max(map(self.passes, loops[:1]), key=len, default=[]) for loops in (touching, positives)]
        return min(self.passes(marking[0]), key=len), *(max(passes, key=len, default=[]) for passes in longest)


def bodies(library: Path, archs: set[str], names: re.Pattern[str]) -> Iterator[Body]:
    kernels = sass.resources(library)
    for arch, name, lines in sass.listings(library, archs, names, "-hex"):
        yield Body(*sass.blocks(lines), kernels[arch, name])

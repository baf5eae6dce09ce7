# Owns: reading compiled CUDA kernels: which there are, what they use, and what each pass of their hot loops issues.
# Must not know: budgets, chips, tables (bench/kernels.py).
from __future__ import annotations

import heapq
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# A kernel's mangled name: of rows or of a pyramid, type of the logits, kind of targets, loss, modulator of its
# negatives.
NAME = re.compile(
    r"(focal|pyramid)_kernelI(f|d|13__nv_bfloat16|6__half)(?:\w*?(Id|Dense|Either)TargetsI)?\w*?"
    r"\d(SigmoidFocal|SmoothedSigmoidFocal|FocalNegatives|Asymmetric)I\w*?"
    r"(?:WholeModulatorILi(\d)E|(ZeroOrOne|Any)Modulator)"
)
FACTORS = re.compile(r"7FactorsE([12])E")  # at its end, where they are not one for a tile
OF_A_LOSS = re.compile(r"(focal|pyramid)_kernelI")
TYPES = {"f": "fp32", "d": "fp64", "13__nv_bfloat16": "bf16", "6__half": "fp16"}
CLIPPED = "asymmetric with clip"
# The focal loss is named by its targets, another loss by itself: it takes all.
TARGETS = {"Id": "ids", "Dense": "dense", "Either": "ids or dense"}
SMOOTHED, PYRAMID = "label smoothing", "pyramid"
OF_ROWS, OF_CLASSES = ", factors of rows", ", factors of classes"
SOFTMAX_OVER_PLANES = "softmax_planes_kernel"  # its loops tell the type of the logits at run time: no flow of their own
LOSSES = {"SmoothedSigmoidFocal": SMOOTHED, "FocalNegatives": "quality, varifocal, asymmetric", "Asymmetric": CLIPPED}
INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)(.*?);?\s*$")

CONTROL = re.compile(r"^\s*/\* (0x[0-9a-f]{16}) \*/\s*$")  # the second word of an instruction, by nvdisasm -hex


def tool(name: str) -> str:
    """cuobjdump or nvdisasm: from the PyPI packages nvidia-cuda-cuobjdump and nvidia-cuda-nvdisasm, or from the
    PATH."""
    packaged = sorted(Path(sysconfig.get_path("purelib")).glob(f"nvidia/*/bin/{name}"))
    found = str(packaged[-1]) if packaged else shutil.which(name)
    if not found:
        raise FileNotFoundError(f"{name} not found: pip install nvidia-cuda-{name}")
    return found


class Instruction(str):
    """An opcode, whether a predicate stands before it and, where the listing has them, the 21 bits by which the
    compiler schedules it."""

    predicated: bool
    control: int = 0

    def __new__(cls, opcode: str, predicated: bool = False) -> Instruction:
        made = super().__new__(cls, opcode)
        made.predicated = predicated
        return made

    @property
    def stall(self) -> int:
        """Cycles until the warp's next instruction, at least."""
        return max(1, self.control & 15)

    @property
    def result_barrier(self) -> int:
        """The barrier, of six, that falls when the result is there; 7 is none."""
        return self.control >> 5 & 7

    @property
    def operand_barrier(self) -> int:
        """The barrier that falls when the operands have been read; 7 is none."""
        return self.control >> 8 & 7

    @property
    def waits(self) -> list[int]:
        return [barrier for barrier in range(6) if self.control >> 11 >> barrier & 1]


@dataclass
class Loop:
    """One pass of a loop by the path that leaves rare branches out."""

    instructions: Counter[str]

    @property
    def issued(self) -> int:
        return sum(self.instructions.values())

    @property
    def calls(self) -> int:
        return self.count("CALL") - self.count("CALL.REL.NOINC")

    def count(self, *prefixes: str) -> int:
        return sum(n for opcode, n in self.instructions.items() if opcode.startswith(prefixes))

    @property
    def finds_rows(self) -> int:
        """How often it multiplies for a high word: once per logit in the careful path, to find the logit's row, and
        nowhere else."""
        return self.count("IMAD.HI")

    @property
    def stores(self) -> int:
        return self.count("STG", "ST.E")

    @property
    def vector_loads(self) -> int:
        return self.count("LDG.E.128", "LD.E.128")

    @property
    def vector_stores(self) -> int:
        return self.count("STG.E.128", "ST.E.128")


@dataclass
class Kernel:
    arch: str
    name: str
    registers: int
    stack: int
    local: int
    shared: int
    loops: list[Loop] = field(default_factory=list)

    @property
    def identity(self) -> tuple[str, str, str] | None:
        """(type of the logits, targets or loss, gamma) of a focal kernel."""
        match = NAME.search(self.name)
        if not match:
            return None
        gamma = match[5] or {"ZeroOrOne": "0 or 1", "Any": "any"}[match[6]]
        if match[1] == "pyramid":
            return TYPES[match[2]], PYRAMID if match[4] != "SmoothedSigmoidFocal" else f"{PYRAMID}, {SMOOTHED}", gamma
        factors = FACTORS.search(self.name)
        return (
            TYPES[match[2]],
            LOSSES.get(match[4], TARGETS[match[3]]) + ({"1": OF_ROWS, "2": OF_CLASSES}[factors[1]] if factors else ""),
            gamma,
        )


def resources(library: Path) -> dict[tuple[str, str], Kernel]:
    """Every kernel of the library with its registers, stack (spills live there), local and shared bytes."""
    kernels: dict[tuple[str, str], Kernel] = {}
    arch = name = ""
    for line in subprocess.run(
        [tool("cuobjdump"), "-res-usage", str(library)], capture_output=True, text=True, check=True
    ).stdout.splitlines():
        if found := re.match(r"arch = (sm_\w+)", line):
            arch = found[1]
        elif found := re.match(r"\s*Function (\S+?):$", line):
            name = found[1]
        elif name and (found := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line)):
            registers, stack, shared, local = map(int, found.groups())
            kernels[arch, name] = Kernel(arch, name, registers, stack, local, shared)
            name = ""
    return kernels


def read(library: Path, archs: set[str] | None = None) -> list[Kernel]:
    """The library's kernels with their loops; `archs` ("sm_90", ...) limits the disassembly, which takes seconds per
    architecture."""
    kernels = resources(library)
    for arch, name, body in listings(library, archs):
        if (arch, name) in kernels:
            kernels[arch, name].loops = loops(body)
    return list(kernels.values())


def listings(
    library: Path, archs: set[str] | None = None, names: re.Pattern[str] | None = None, *options: str
) -> Iterator[tuple[str, str, list[str]]]:
    """(architecture, name, lines) of each function, of the files that hold a name that `names` finds; `options` are
    nvdisasm's."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [tool("cuobjdump"), "-xelf", "all", str(library.resolve())], cwd=folder, capture_output=True, check=True
        )
        for cubin in sorted(Path(folder).glob("*.cubin")):
            arch = re.search(r"sm_\w+?(?=\.)", cubin.name)
            if (
                not arch
                or (archs and arch[0] not in archs)
                or (names and not names.search(cubin.read_bytes().decode("latin-1")))
            ):
                continue
            text = subprocess.run(
                [tool("nvdisasm"), "-c", *options, str(cubin)], capture_output=True, text=True, check=True
            ).stdout
            for name, body in functions(re.sub(" {2,}", " ", text)):
                if not names or names.search(name):
                    yield arch[0], name, body


def functions(text: str) -> list[tuple[str, list[str]]]:
    parts = re.split(r"^\.text\.(\S+):$", text, flags=re.MULTILINE)
    return [(name, body.split("\n.section", 1)[0].splitlines()) for name, body in zip(parts[1::2], parts[2::2])]


def blocks(lines: list[str]) -> tuple[list[list[Instruction]], list[list[int]]]:
    """Basic blocks, and the successors of each."""
    opcodes: list[list[Instruction]] = [[]]
    latest = Instruction("")
    labels: dict[str, int] = {}
    jumps: list[list[str]] = [[]]
    falls: list[bool] = [True]
    for line in lines:
        if label := re.match(r"^(\.L_x_\d+):", line):
            if opcodes[-1]:
                opcodes.append([]), jumps.append([]), falls.append(True)
            labels[label[1]] = len(opcodes) - 1
        elif instruction := INSTRUCTION.match(line):
            opcode, rest = instruction[2], instruction[3]
            latest = Instruction(opcode, "@" in line)
            if opcode == "NOP":
                continue
            opcodes[-1].append(latest)
            # CALL.REL.NOINC is a jump: it leaves no way back.
            if opcode.startswith(("BRA", "BRX", "EXIT", "RET", "JMP", "CALL.REL.NOINC")):
                # BRA.DIV leaves for where a warp's lanes, if they have parted, meet.
                jumps[-1] = [] if opcode == "BRA.DIV" else re.findall(r"\.L_x_\d+", rest)
                # BRA's predicate is an operand too, of BRA.U a uniform one.
                falls[-1] = "@" in line or opcode == "BRA.DIV" or bool(re.search(r"\bU?P\d", rest))
                opcodes.append([]), jumps.append([]), falls.append(True)
        elif word := CONTROL.match(line):
            latest.control = int(word[1], 16) >> 41
    successors = [
        [labels[j] for j in jump if j in labels] + ([i + 1] if fall and i + 1 < len(opcodes) else [])
        for i, (jump, fall) in enumerate(zip(jumps, falls))
    ]
    return opcodes, successors


def loops(lines: list[str]) -> list[Loop]:
    """Each loop that loads and computes exponentials, by its cheapest complete pass: rare branches are left out, the
    work is not."""
    opcodes, successors = blocks(lines)
    found = []
    for latch, targets in enumerate(successors):
        for header in targets:
            if header > latch:
                continue  # not a back edge
            passes = [
                Loop(Counter(op for block in path for op in opcodes[block]))
                for path in cheapest(opcodes, successors, header, latch)
            ]
            working = [loop for loop in passes if loop.count("LDG", "LD.E") and loop.count("MUFU.EX2")]
            if working:
                found.append(min(working, key=incompleteness))
            # through dense targets, which votes whether it may go on: with the gradient
            voting = [loop for loop in working if loop.count("VOTE") and loop.vector_stores]
            if voting:
                found.append(min(voting, key=lambda loop: (loop.count("MUFU.EX2") < 8, loop.issued)))
    return found


def incompleteness(loop: Loop) -> tuple[int, int, int]:
    """Least for the pass to count. A stream's is whole by its nature; the careful path's computes all its logits and
    stores each of them."""
    if loop.vector_loads or not loop.finds_rows:
        return 0, 0, loop.issued
    return -loop.count("MUFU.EX2"), max(0, loop.finds_rows - loop.stores), loop.issued


def cheapest(opcodes: list[list[Instruction]], successors: list[list[int]], header: int, latch: int) -> list[list[int]]:
    """Paths from header to latch, as blocks, forward edges only: the one that issues least for each number of
    exponentials, rows and stores."""

    def work(block: int) -> tuple[int, int, int]:
        loop = Loop(Counter(opcodes[block]))
        return loop.count("MUFU.EX2"), loop.finds_rows, loop.stores

    queue = [(len(opcodes[header]), header, work(header), [header])]
    seen = set()
    complete = []
    while queue:
        cost, block, done, path = heapq.heappop(queue)
        if (block, done) in seen:
            continue
        seen.add((block, done))
        if block == latch:
            complete.append(path)
        for following in successors[block]:
            if block < following <= latch:
                more = tuple(map(sum, zip(done, work(following))))
                heapq.heappush(queue, (cost + len(opcodes[following]), following, more, [*path, following]))
    return complete

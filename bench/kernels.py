# Owns: what the compiled CUDA kernels cost: instructions per logit against the budget, and a roofline model per chip.
# Must not know: how machine code is read (bench/sass.py).
"""python -m bench.kernels [--library focal_ext/libfocal_ext.so] [--write]: prints docs/kernels.md, or writes it and the certificate."""

from __future__ import annotations

import argparse
import subprocess
from dataclasses import dataclass
from pathlib import Path


from . import sass
from .sass import Kernel, Loop

ROOT = Path(__file__).resolve().parent.parent
LIBRARY = ROOT / "focal_ext/libfocal_ext.so"
SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}

# Instructions a logit may issue in the hot loop (gamma 2, loss and gradient), and the limits of every hot loop.
BUDGET = {("sm_80", "fp32"): 30, ("sm_90", "fp32"): 30, ("sm_100", "fp32"): 20}
BUDGET |= {(arch, dtype): budget for dtype in ("bf16", "fp16") for arch, budget in (("sm_80", 23), ("sm_90", 23), ("sm_100", 15))}
MUFU = {"0": 2, "1": 2, "2": 2, "any": 3}
CAREFUL = "one by one"  # the scalar loops: tiles with positives, ignored rows, weights or a tail, about one in twenty
REGISTERS, KERNELS, LIBRARY_BYTES = 64, 200, 8_000_000


@dataclass(frozen=True)
class Chip:
    """Data-sheet numbers: multiprocessors, sustained GHz, memory TB/s, and lanes per cycle and multiprocessor of each unit."""

    name: str
    arch: str
    processors: int
    ghz: float
    memory: float
    fp32: int
    alu: int = 64
    mufu: int = 16
    issue: int = 128


CHIPS = (
    Chip("A100 80GB", "sm_80", 108, 1.41, 2.04, 64),
    Chip("H100 SXM", "sm_90", 132, 1.755, 3.35, 128),
    Chip("H200", "sm_90", 132, 1.755, 4.8, 128),
    Chip("B200", "sm_100", 148, 1.965, 8.0, 128),
    Chip("RTX 4090", "sm_89", 128, 2.52, 1.008, 128),
)

# Bytes that others move per logit of s bytes, forward and backward, counted from their code.
PEERS = {"focal_ext": 2, "recompute in backward": 3, "apex": 4, "stored loss map": 5, "mmcv": 9, "eager torchvision": 90}

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
    def mufu(self) -> float:
        return self.per_logit("MUFU")

    @property
    def fp32(self) -> float:
        """Lane operations; a packed f32x2 instruction is two."""
        return self.per_logit(*FP32) + self.per_logit("FFMA2", "FADD2", "FMUL2")


def tabulate(table: list[list[object]], headers: list[str]) -> str:
    """A Markdown table without padding: these are long."""
    lines = [headers, ["---"] * len(headers), *table]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def flow_of(loop: Loop) -> str | None:
    """Which results a loop over logits makes, told by its loads and stores."""
    if not loop.vector_loads:
        return CAREFUL
    if loop.vector_stores == 0:
        return "loss alone"
    if loop.vector_loads == 2 * loop.vector_stores:
        return "gradient times a map"
    return "loss and gradient" if loop.vector_loads == loop.vector_stores else None


def rows(kernels: list[Kernel]) -> list[Row]:
    """One row per kernel and flow: its longest unrolled loop; of equal ones (gradient, loss map) the dearer, which is the gradient's."""
    best: dict[tuple[str, ...], Row] = {}
    for kernel in kernels:
        if kernel.identity is None or kernel.identity[0] not in SIZE:
            continue
        dtype, targets, gamma = kernel.identity
        for loop in kernel.loops:
            flow = flow_of(loop)
            if flow is None:
                continue
            vectors = loop.vector_loads // (2 if "map" in flow else 1)
            logits = vectors * 16 // SIZE[dtype] or max(1, loop.count("MUFU.EX2") // (1 if gamma != "any" else 2))
            row = Row(kernel.arch, dtype, targets, gamma, flow, kernel.registers, kernel.stack + kernel.local, logits, loop)
            key = (row.arch, dtype, targets, gamma, flow)
            if key not in best or (row.logits, row.loop.issued) > (best[key].logits, best[key].loop.issued):
                best[key] = row
    return sorted(best.values(), key=lambda r: (int(r.arch[3:].rstrip("a")), r.dtype, r.targets, r.gamma, r.flow))


def violations(kernels: list[Kernel], library_bytes: int) -> list[str]:
    """What exceeds a limit, in sentences; empty is good."""
    found = [f"{k.arch} {k.name}: {k.stack} bytes of stack, {k.local} local" for k in kernels if k.identity and k.identity[0] != "fp64" and k.stack + k.local]
    for arch in {k.arch for k in kernels}:
        if (count := sum(k.arch == arch for k in kernels)) > KERNELS:
            found.append(f"{arch}: {count} kernels, at most {KERNELS}")
    if library_bytes > LIBRARY_BYTES:
        found.append(f"the library has {library_bytes} bytes, at most {LIBRARY_BYTES}")
    for row in rows(kernels):
        where = f"{row.arch} {row.dtype} {row.targets} gamma {row.gamma}, {row.flow}"
        if row.registers > REGISTERS and row.targets == "ids":
            found.append(f"{where}: {row.registers} registers, at most {REGISTERS}")
        if row.flow != CAREFUL and row.mufu > MUFU[row.gamma]:
            found.append(f"{where}: {row.mufu} MUFU per logit, at most {MUFU[row.gamma]}")
        if row.flow != CAREFUL and (row.loop.calls or row.loop.count("LDL", "STL", "I2F", "F2I.")):
            found.append(f"{where}: a call, local memory or an integer division in the loop")
        budget = BUDGET.get((row.arch, row.dtype))
        if budget and row.targets == "ids" and row.gamma == "2" and row.flow == "loss and gradient" and row.per_logit() > budget:
            found.append(f"{where}: {row.per_logit():.1f} instructions per logit, at most {budget}")
    wanted = {(arch, dtype) for arch, dtype in BUDGET if arch in {k.arch for k in kernels}}
    seen = {(r.arch, r.dtype) for r in rows(kernels) if r.targets == "ids" and r.gamma == "2" and r.flow == "loss and gradient"}
    return found + [f"{arch} {dtype}: no hot loop found" for arch, dtype in sorted(wanted - seen)]


def loop_table(kernels: list[Kernel]) -> str:
    table = []
    for row in rows(kernels):
        if row.arch not in ("sm_80", "sm_90", "sm_100", "sm_120") or (row.targets != "ids" and row.flow not in ("loss and gradient", CAREFUL)):
            continue
        budget = BUDGET.get((row.arch, row.dtype)) if row.gamma == "2" and row.flow == "loss and gradient" and row.targets == "ids" else None
        table.append([row.arch, row.dtype, row.targets, row.gamma, row.flow, f"{row.per_logit():.1f}", budget or "", f"{row.mufu:.0f}", f"{row.fp32:.1f}", f"{row.per_logit(*ALU):.1f}", row.registers, row.stack])
    headers = ["arch", "logits", "targets", "gamma", "flow", "instructions / logit", "budget", "MUFU", "FP32", "ALU", "registers", "spill bytes"]
    return tabulate(table, headers=headers)


def model_table(kernels: list[Kernel]) -> str:
    """Cycles of each unit per logit, as a share of the time the memory needs for the logit's two passes. Above 1 the unit is the limit."""
    table = []
    hot = {(r.arch, r.dtype): r for r in rows(kernels) if r.targets == "ids" and r.gamma == "2" and r.flow == "loss and gradient"}
    for chip in CHIPS:
        for dtype in ("fp32", "bf16"):
            row = hot.get((chip.arch, dtype))
            if row is None:
                continue
            memory = 2 * SIZE[dtype] / (chip.memory * 1e12)  # seconds per logit
            lanes = chip.processors * chip.ghz * 1e9
            units = {"issue": row.per_logit() / chip.issue, "FP32": row.fp32 / chip.fp32, "ALU": row.per_logit(*ALU) / chip.alu, "MUFU": row.mufu / chip.mufu}
            shares = {name: cycles / lanes / memory for name, cycles in units.items()}
            limit = max([("memory", 1.0), *shares.items()], key=lambda item: item[1])
            table.append([chip.name, dtype, f"{2 * SIZE[dtype]}", f"{memory * 1e12:.2f}", *(f"model {share:.2f}" for share in shares.values()), f"model: {limit[0]}", f"model {200_000 * 80 * memory * limit[1] * 1e6:.0f}"])
    headers = ["chip", "logits", "bytes / logit", "memory, ps / logit", "issue / memory", "FP32 / memory", "ALU / memory", "MUFU / memory", "limit", "200,000 x 80, microseconds"]
    return tabulate(table, headers=headers)


def document(kernels: list[Kernel], library: Path) -> str:
    archs = sorted({k.arch for k in kernels}, key=lambda a: int(a[3:].rstrip("a")))
    counts = ", ".join(f"{sum(k.arch == arch for k in kernels)} on {arch}" for arch in archs)
    peers = tabulate([[name, f"{s}s"] for name, s in PEERS.items()], headers=["implementation", "bytes moved per logit of s bytes"])
    return f"""# CUDA kernels, read from machine code

Generated by `python -m bench.kernels --write` from the built library ({library.stat().st_size / 1e6:.1f} MB; kernels: {counts}). No GPU
took part: instruction counts are read from the code, times are a model.

## Hot loops

One pass over the pure-negative stream, rare branches left out, per logit. "One by one" is the
cheapest pass of the scalar loops, which take the tiles with positives, ignored rows, weights or a tail. sm_75, sm_86 and sm_89
are in the certificate only. The budget is the count below which the kernel is limited by
memory on the tightest chip of that architecture.

{loop_table(kernels)}

## Roofline model (loss and gradient, class ids, gamma 2)

Each unit's time per logit over the memory's; below 1 the memory is the limit. The model: data-sheet lanes per cycle, every unit
busy all the time, nothing else. Chips: {"; ".join(f"{c.name} {c.processors} multiprocessors at {c.ghz} GHz, {c.memory} TB/s" for c in CHIPS)}.

{model_table(kernels)}

## What others move

{peers}
"""


def certificate(kernels: list[Kernel]) -> str:
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip()
    table = []
    hot = {(r.arch, r.dtype, r.targets, r.gamma): r for r in rows(kernels) if r.flow == "loss and gradient"}
    for k in sorted(kernels, key=lambda k: (int(k.arch[3:].rstrip("a")), k.name)):
        row = hot.get((k.arch, *k.identity)) if k.identity else None
        name = ", ".join(k.identity) if k.identity else k.name
        cells = [f"{row.mufu:.0f}", f"{row.per_logit():.1f}", 2 * SIZE[row.dtype]] if row else ["", "", ""]
        table.append([k.arch, name, k.registers, k.stack + k.local, *cells])
    headers = ["arch", "kernel (logits, targets, gamma)", "registers", "spill bytes", "MUFU / logit", "instructions / logit", "bytes / logit"]
    proofs = ROOT / "tests/kernels/proofs.md"
    return f"""# Kernel certificate

Generated by `python -m bench.kernels --write` at commit {commit}.

{proofs.read_text() if proofs.exists() else ""}
{tabulate(table, headers=headers)}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description="What the compiled CUDA kernels cost.")
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument("--write", action="store_true", help="write docs/kernels.md and docs/kernel_certificate.md")
    options = parser.parse_args()
    kernels = sass.read(options.library)
    if not kernels:
        raise SystemExit(f"{options.library} has no CUDA kernels; build with nvcc on the PATH")
    if options.write:
        (ROOT / "docs/kernels.md").write_text(document(kernels, options.library))
        (ROOT / "docs/kernel_certificate.md").write_text(certificate(kernels))
    else:
        print(document(kernels, options.library))
    found = violations(kernels, options.library.stat().st_size)
    if found:
        raise SystemExit("\n".join(found))


if __name__ == "__main__":
    main()

# Owns: what docs/kernels.md shows of the compiled CUDA kernels, from bench/results/kernels.csv and
# tests/kernels/proofs.md: instructions of each loop, a roofline for each chip, what ran on the CPU.
# Must not know: how machine code is read, what exceeds a limit.
from __future__ import annotations

from .chips import CHIPS
from .performance_page import ROOT, Row, read

SIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
HOT = "loss and gradient"
SHOWN = [(arch, dtype) for arch in ("sm_80", "sm_90", "sm_100", "sm_120") for dtype in ("fp32", "bf16")]
Name = tuple[str, str, str]  # targets or another loss, gamma, flow


def tabulate(table: list[list[object]], headers: list[str]) -> str:
    """A Markdown table without padding: these are long."""
    lines = [headers, ["---"] * len(headers), *table]
    return "\n".join("| " + " | ".join(str(cell).strip() for cell in cells) + " |" for cells in lines)


def name_of(row: Row) -> Name:
    return row["targets"], row["gamma"], row["flow"]


def loops() -> str:
    """Instructions a logit, with the budget where there is one, and the most registers of the chips that are shown."""
    rows = read("kernels")
    found: dict[Name, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row["instructions"] and (row["arch"], row["logits"]) in SHOWN:
            found.setdefault(name_of(row), {})[row["arch"], row["logits"]] = row
    table = []
    for name, of in found.items():
        if name[0].endswith("factors of rows") and name[2] == HOT:
            continue  # as without those factors
        shown = [of.get(key) for key in SHOWN]
        cells = [
            f"{row['instructions']} {f'({limit})' if (limit := row['budget']) else ''}" if row else "" for row in shown
        ]
        table.append([*name, *cells, max(int(row["registers"]) for row in of.values())])
    headers = ["targets, or another loss", "gamma", "loop", *map(" ".join, SHOWN), "registers"]
    counts = dict(row["kernels"].split(":") for row in rows)
    each = ", ".join(f"{count} on {arch}" for arch, count in counts.items())
    about = f"Library of commit {rows[0]['commit']}, {rows[0]['megabytes']} MB; kernels: {each}."
    return f"{tabulate(table, headers)}\n\n{about}\n"


def roofline() -> str:
    """Cycles of each unit per logit, as a share of the time the memory needs for the logit's two passes. Above 1 the
    unit is the limit."""
    hot = {(row["arch"], row["logits"]): row for row in read("kernels") if name_of(row) == ("ids or dense", "2", HOT)}
    table: list[list[object]] = []
    for chip in CHIPS:
        for dtype in ("fp32", "bf16"):
            row = hot[chip.arch, dtype]
            memory = 2 * SIZE[dtype] / (chip.memory * 1e12)  # seconds per logit
            lanes = chip.processors * chip.ghz * 1e9
            units = {
                "issue": float(row["instructions"]) / chip.issue,
                "FP32": float(row["fp32"]) / chip.fp32,
                "ALU": float(row["alu"]) / chip.alu,
                "MUFU": float(row["mufu"]) / chip.mufu,
            }
            shares = {name: cycles / lanes / memory for name, cycles in units.items()}
            limit = max([("memory", 1.0), *shares.items()], key=lambda item: item[1])
            table.append(
                [
                    chip.name,
                    dtype,
                    f"{memory * 1e12:.2f}",
                    *(f"{share:.2f}" for share in shares.values()),
                    limit[0],
                    f"{200_000 * 80 * memory * limit[1] * 1e6:.0f}",
                ]
            )
    headers = ["chip", "logits", "memory, ps / logit", "issue", "FP32", "ALU", "MUFU", "limit"]
    chips = "; ".join(f"{c.name} {c.processors} multiprocessors at {c.ghz} GHz, {c.memory} TB/s" for c in CHIPS)
    return f"{tabulate(table, [*headers, '200,000 x 80, microseconds (model)'])}\n\n{chips}.\n"


def proofs() -> str:
    return (ROOT / "tests/kernels/proofs.md").read_text()

# Owns: the table of predicted times of the CUDA kernels: bench/results/model.csv, docs/model.md.
# Must not know: how a prediction is made (bench/predict.py).
"""python -m bench.model [--library focal_ext/libfocal_ext.so] [--write]: every figure is a model, off by up to 30 %."""

from __future__ import annotations

import argparse
import csv
import shutil
from pathlib import Path

from .chips import CHIPS, Chip
from .predict import TYPES, Code, bytes_us, control, main_kernel, rest_of_call
from .workloads import CASES, Case

ROOT = Path(__file__).resolve().parent.parent
LIBRARY, RESULTS = ROOT / "focal_ext/libfocal_ext.so", ROOT / "bench/results/model.csv"
PAGE, MARK = ROOT / "docs/model.md", "<!-- python -m bench.model --write -->\n"
MODEL = "A model from machine code, off by up to 30 %: no GPU took part."


COLUMNS = (
    "chip",
    "logits",
    "case",
    "bytes at reachable bandwidth, us",
    "limit",
    "main kernel, model, us",
    "ratio, model",
    "within",
    "forward and backward, model, us",
    "more for another factor, model, us",
)


def row(code: Code, chip: Chip, dtype: str, case: Case) -> dict[str, str]:
    ideal = bytes_us(chip, case.bytes(dtype))
    limit = (3 + 2 * ideal) / ideal if case.limit_us else case.limits.get((chip.name, dtype))
    about = [chip.name, dtype, case.name, f"{ideal:.1f}", f"{limit:.2f}" if limit else ""]
    try:
        time = main_kernel(code, chip, dtype, case)
    except LookupError as missing:
        return dict(zip(COLUMNS, [*about, "", "", str(missing), "", ""]))
    rest, scaled = rest_of_call(code, chip, dtype, case)
    # by the digits that the table shows
    within = "" if limit is None else "yes" if round(time / ideal, 2) <= round(limit, 2) else "no"
    return dict(
        zip(COLUMNS, [*about, f"{time:.1f}", f"{time / ideal:.2f}", within, f"{time + rest:.1f}", f"{scaled:.1f}"])
    )


def tabulate(rows: list[dict[str, str]]) -> str:
    """The ratios, cases by chips: with the limit that it keeps, or with the one that it does not."""
    columns = list(dict.fromkeys((line["chip"], line["logits"]) for line in rows))
    cells = {(line["chip"], line["logits"], line["case"]): cell(line) for line in rows}
    table = [["ratio, model", *(f"{chip} {dtype}" for chip, dtype in columns)], ["---"] * (1 + len(columns))]
    table += [[case.name, *(cells[chip, dtype, case.name] for chip, dtype in columns)] for case in CASES]
    return "\n".join("| " + " | ".join(line) + " |" for line in table)


def cell(line: dict[str, str]) -> str:
    ratio, limit = line["ratio, model"] or line["within"], line["limit"]
    return f"{ratio} ({limit})" if line["within"] == "yes" else f"**{ratio}** ({limit})" if limit else ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=MODEL)
    parser.add_argument("--library", type=Path, default=LIBRARY)
    parser.add_argument(
        "--write", action="store_true", help=f"write {RESULTS.relative_to(ROOT)} and the table of docs/model.md"
    )
    options = parser.parse_args()
    made: list[dict[str, str]] = []
    for arch in dict.fromkeys(chip.arch for chip in CHIPS):
        code = Code(options.library, arch)
        made += [
            row(code, chip, dtype, case) for chip in CHIPS if chip.arch == arch for dtype in TYPES for case in CASES
        ]
    print(f"{MODEL}\n\n{tabulate(made)}")
    if shutil.which("nvcc"):
        print(
            "\nControl, a plain copy over its bytes' time: "
            + ", ".join(f"{chip.name} model {control(chip):.2f}" for chip in CHIPS)
        )
    if options.write:
        with RESULTS.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(made[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(made)
        before, _ = PAGE.read_text().split(MARK)
        PAGE.write_text(f"{before}{MARK}\n{tabulate(made)}\n")


if __name__ == "__main__":
    main()

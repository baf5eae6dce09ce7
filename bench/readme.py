# Owns: the README's performance table and figure, rewritten from the checked-in CSV files.
# Must not know: how the figures were measured.
"""python -m bench.readme [--check]: rewrites README.md, docs/performance.png and docs/memory.png, or fails when the README differs from the CSV."""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path

from . import head_page

ROOT = Path(__file__).resolve().parent.parent
RESULTS = {"default allocator": ROOT / "bench/results/cpu.csv", "memory kept": ROOT / "bench/results/cpu_kept_memory.csv"}
MARKERS = re.compile(r"(<!-- performance -->\n).*?(<!-- /performance -->)", re.DOTALL)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table(default: list[dict[str, str]], kept: list[dict[str, str]]) -> str:
    """One row per implementation: speed under both allocator settings, memory and error together."""
    lines = [
        "| logits | implementation | forward + backward, ms (p20 - p80) | / focal_ext's | memory kept, ms (p20 - p80) | / focal_ext's | peak extra memory / logits | worst relative error of a gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, other in zip(default, kept, strict=True):
        assert (row["case"], row["implementation"]) == (other["case"], other["implementation"])
        error = f"{float(row['worst_relative_error']):.0e}" if row["worst_relative_error"] else ""
        bold = "**" if row["implementation"] == "focal_ext" else ""
        speed = [cell for r in (row, other) for cell in (milliseconds(r), f"{float(r['speedup']):.2g}")]
        lines.append("| " + " | ".join([row["case"], f"{bold}{row['implementation']}{bold}", *speed, f"{float(row['peak_extra_logits']):.2f}", error]) + " |")
    return "\n".join(lines)


def milliseconds(row: dict[str, str]) -> str:
    median, low, high = (f"{float(row[key]):.3g}" for key in ("ms", "ms_p20", "ms_p80"))
    return f"{median} ({low} - {high})"


def section() -> str:
    default, kept = (read(path) for path in RESULTS.values())
    first = default[0]
    return f"{table(default, kept)}\n\n{first['machine']}, torch {first['torch']}, commit {first['commit']}, {first['date']}; memory kept: `GLIBC_TUNABLES={kept[0]['allocator']}`.\n"


def draw(to: Path) -> None:
    """Time per logit of every implementation, both allocator settings, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = [c for c in dict.fromkeys(row["case"] for row in read(RESULTS["default allocator"])) if c.startswith("200,000")]
    figure, axes = pyplot.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.4), layout="constrained", squeeze=False)
    for axis, case in zip(axes[0], cases):
        for (name, path), colour, offset in zip(RESULTS.items(), ("#b0b7c3", "#2563eb"), (0.2, -0.2)):
            rows = [row for row in read(path) if row["case"] == case]
            values = [float(row["ns_per_logit"]) for row in rows]
            axis.barh([-i + offset for i in range(len(rows))], values, height=0.38, color=colour, label=name)
            for i, value in enumerate(values):
                axis.text(value * 1.08, -i + offset, f"{value:.3g}", va="center", fontsize=7)
        axis.set_yticks([-i for i in range(len(rows))], [row["implementation"] for row in rows], fontsize=8)
        axis.set_xscale("log")
        axis.set_xlim(right=axis.get_xlim()[1] * 2)
        axis.set_xlabel("ns per logit, forward + backward")
        axis.set_title(case, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(fontsize=8, frameon=False, loc="lower right")
    figure.savefig(to, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrite the README's performance section from bench/results.")
    parser.add_argument("--check", action="store_true", help="only compare; fail when the README differs")
    readme = ROOT / "README.md"
    text = readme.read_text()
    wanted = MARKERS.sub(lambda m: m.group(1) + section() + m.group(2), text)
    wanted = head_page.MARKERS.sub(lambda m: m.group(1) + head_page.section() + m.group(2), wanted)
    if parser.parse_args().check:
        raise SystemExit("README.md differs from bench/results; run make readme" if wanted != text else 0)
    readme.write_text(wanted)
    draw(ROOT / "docs/performance.png")
    head_page.draw(ROOT / "docs/memory.png")


if __name__ == "__main__":
    main()

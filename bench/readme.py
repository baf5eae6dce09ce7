# Owns: the tables of measurements in README.md and docs/, and their figures, rewritten from the checked-in CSV files.
# Must not know: how the figures were measured.
"""python -m bench.readme [--check]: rewrites these pages and the figures of docs/, or fails when a page differs from
the CSV."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from . import apart_page, drawing, head_page, kernels_page, performance_page, switches_page
from .performance_page import ratio, read, rounded, spread

ROOT = Path(__file__).resolve().parent.parent
RESULTS = {"default allocator": "cpu", "memory kept": "cpu_kept_memory"}
FAMILY = ("family", "family_kept_memory")


def table(default: list[dict[str, str]], kept: list[dict[str, str]]) -> str:
    """One row per implementation: speed under both allocator settings, memory and error together."""
    lines = [
        "| logits | implementation | forward + backward, ms (p20 - p80) | / focal_ext's | memory kept, ms (p20 - p80) "
        "| / focal_ext's | peak extra memory / logits | worst relative error of a gradient |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, other in zip(default, kept, strict=True):
        assert (row["case"], row["implementation"]) == (other["case"], other["implementation"])
        if row.get("why_not"):
            lines.append(f"| {row['case']} | {row['implementation']} | {spread(row, 'ms')} |" + " |" * 5)
            continue
        bold = "**" if row["implementation"] == "focal_ext" else ""
        speed = [cell for r in (row, other) for cell in (spread(r, "ms"), ratio(r["speedup"]))]
        lines.append(
            "| "
            + " | ".join(
                [
                    row["case"],
                    f"{bold}{row['implementation']}{bold}",
                    *speed,
                    f"{float(row['peak_extra_logits']):.2f}",
                    rounded(row["worst_relative_error"]),
                ]
            )
            + " |"
        )
    return "\n".join(lines)


def section(names: Sequence[str]) -> str:
    default, kept = (read(name) for name in names)
    first = default[0]
    return (
        f"{table(default, kept)}\n\n{first['machine']}, torch {first['torch']}, commit {first['commit']}, "
        f"{first['date']}; memory kept: `GLIBC_TUNABLES={kept[0]['allocator']}`.\n"
    )


# page -> what stands between <!-- name --> and <!-- /name --> in it
PAGES = {
    "README.md": {"ways": apart_page.readme, "step": performance_page.step_sentence},
    "docs/losses.md": {"family": lambda: section(FAMILY), "family sizes": performance_page.family_sizes},
    "docs/integrations.md": {"switches": switches_page.section},
    "docs/kernels.md": {
        "loops": kernels_page.loops,
        "roofline": kernels_page.roofline,
        "proofs": kernels_page.proofs,
    },
    "docs/performance.md": {
        "apart": apart_page.details,
        "performance": lambda: section(tuple(RESULTS.values())),
        "head": head_page.section,
        "growth": performance_page.growth,
        "sizes": performance_page.sizes,
        "largest": lambda: performance_page.sizes("largest"),
        "pyramid sizes": performance_page.pyramid_sizes,
        "layouts": performance_page.layouts,
        "step": performance_page.step,
    },
}


def rewritten(page: str) -> str:
    """The page with its tables as the CSV files say."""
    text = (ROOT / page).read_text()
    for name, made in PAGES[page].items():
        text, count = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda m, made=made: m.group(1) + made() + m.group(2),
            text,
            flags=re.DOTALL,
        )
        assert count == 1, f"{page} has no place for {name}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="Rewrite the tables and figures of measurements from bench/results.")
    parser.add_argument("--check", action="store_true", help="only compare; fail when a page differs")
    check = parser.parse_args().check
    for page in PAGES:
        wanted = rewritten(page)
        if check and wanted != (ROOT / page).read_text():
            raise SystemExit(f"{page} differs from bench/results; run make readme")
        if not check:
            (ROOT / page).write_text(wanted)
    if not check:
        apart_page.draw(ROOT / "docs/first_screen.png", dark=False)
        apart_page.draw(ROOT / "docs/first_screen_dark.png", dark=True)
        for name, dark in (("one_pass", False), ("one_pass_dark", True)):
            drawing.draw(ROOT / f"docs/{name}.png", dark)
        head_page.draw(ROOT / "docs/memory.png")
        performance_page.draw_growth(ROOT / "docs/growth.png")


if __name__ == "__main__":
    main()

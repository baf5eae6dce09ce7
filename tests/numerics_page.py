# Owns: the tables of docs/numerics.md, written from the results of exhaustive.py: python tests/numerics_page.py --write
# Must not know: how the results were measured.
from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs/numerics.md", ROOT / "bench/results/numerics.csv"
BINS = ("upto_0.5", "upto_1", "upto_2")
LOST = 2.0**23  # ULP: nothing of the value is left
Row = dict[str, str]


def read() -> list[Row]:
    with RESULTS.open(newline="") as file:
        return list(csv.DictReader(file))


def table(*rows: list[str]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in (rows[0], ["---"] * len(rows[0]), *rows[1:]))


def target(row: Row) -> str:
    return {"0": "negative", "1": "positive"}.get(row["target"], f"target {row['target']}")


def number(text: str) -> str:
    return f"{float(text):.3g}"


def at_logit(row: Row) -> str:
    return f"{float(row['worst_ulp']):.2f} at {float(row['at']):.5g} ({target(row)})"


def accuracy(rows: list[Row]) -> str:
    """Of every loss and exponent in float32 the worst error among its curves, where it is, and the least share of
    results that are off by 2 ULP at most."""
    lines = []
    for family, settings in dict.fromkeys((row["family"], row["settings"]) for row in rows):
        chosen = [row for row in rows if (row["family"], row["settings"]) == (family, settings)]
        worst = [
            at_logit(max((row for row in chosen if row["what"] == what), key=lambda row: float(row["worst_ulp"])))
            for what in ("loss", "gradient")
        ]
        near = min(sum(int(row[name]) for name in BINS) / int(row["count"]) for row in chosen)
        lines.append([family, settings, *worst, f"{100 * near:.2f}"])
    return table(
        ["loss", "settings", "loss: worst ULP", "gradient: worst ULP", "within 2 ULP, %, of the worst curve"], *lines
    )


def halves(rows: list[Row]) -> str:
    lines = []
    for family, dtype, what in dict.fromkeys((row["family"], row["dtype"], row["what"]) for row in rows):
        chosen = [row for row in rows if (row["family"], row["dtype"], row["what"]) == (family, dtype, what)]
        worst = max(chosen, key=lambda row: float(row["worst_ulp"]))
        right = min(int(row["upto_0.5"]) / int(row["count"]) for row in chosen)
        lines.append(
            [
                family,
                dtype,
                what,
                f"{float(worst['worst_ulp']):.4f}",
                f"{worst['at']} ({target(worst)}, {worst['settings'] or 'any gamma'})",
                f"{100 * right:.2f}",
            ]
        )
    return table(["loss", "dtype", "of", "worst ULP", "at logit", "<= 1/2 ULP, %, of the worst curve"], *lines)


def peers(rows: list[Row], ours: list[Row]) -> str:
    def cells(row: Row) -> list[str]:
        worst = "all digits" if float(row["worst_ulp"]) >= LOST else f"{float(row['worst_ulp']):,.3g}"
        above = "" if row["good_below"] == "inf" else number(row["good_below"])
        return [worst, number(row["at"]), above]

    lines = []
    for row in rows:
        same = next(
            r for r in ours if all(r[key] == row[key] for key in ("loss", "target", "settings", "what", "dtype"))
        )
        lines.append(
            [
                row["implementation"],
                row["loss"],
                target(row),
                row["settings"],
                row["what"],
                *cells(row),
                f"{float(same['worst_ulp']):.3g}",
            ]
        )
    return table(
        [
            "formula of",
            "loss",
            "logit of a",
            "settings",
            "of",
            "worst ULP",
            "at logit",
            "above 16 ULP from abs(logit)",
            "focal_ext's worst ULP",
        ],
        *lines,
    )


def looked_at(row: Row) -> str:
    return "every float32" if row["every"] == "1" else f"one float32 in {row['every']}, by bit pattern,"


def sections() -> dict[str, str]:
    rows = read()
    ours = [row for row in rows if row["implementation"] == "focal_ext"]
    single = [row for row in ours if row["dtype"] == "float32"]
    others = [row for row in rows if row["implementation"] != "focal_ext"]
    first = single[0]
    sampled: dict[str, list[str]] = {}
    for row in single:
        if row["every"] != first["every"] and row["family"] not in sampled.setdefault(looked_at(row), []):
            sampled[looked_at(row)].append(row["family"])
    fewer = "".join(f" {how} of {', '.join(families)};" for how, families in sampled.items())
    run = (
        f"Looked at: {looked_at(first)} in [-120, 120], {int(first['count']):,} logits a curve, and every finite "
        f"bfloat16 and float16;{fewer}"
        f" {looked_at(others[0])} for other libraries' formulas."
        f" CPU level {first['cpu_level']}, torch {first['torch']}, commit {first['commit']}, {first['date']}."
    )
    return {
        "run": run,
        "float32": accuracy(single),
        "halves": halves([row for row in ours if row["dtype"] != "float32"]),
        "peers": peers(others, single),
    }


def page(text: str) -> str:
    """The page with its tables anew; the sentences between them are written by hand."""
    for name, section in sections().items():
        text, found = re.subn(
            rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
            lambda m, section=section: f"{m[1]}{section}\n{m[2]}",
            text,
            flags=re.DOTALL,
        )
        assert found == 1, f"{PAGE.name} has {found} places for {name}"
    return text


if __name__ == "__main__":
    text = page(PAGE.read_text())
    PAGE.write_text(text) if "--write" in sys.argv else print(text)

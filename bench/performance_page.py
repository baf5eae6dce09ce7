# Owns: what docs/performance.md and a line of the README show of growth, other sizes and the training step: tables and
# a figure from the CSV files.
# Must not know: how the figures were measured.

from __future__ import annotations

import csv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench/results"
EAGER, OURS, FLOOR = "eager PyTorch (torchvision)", "focal_ext", "copy (read + write, the floor)"
LINES = {EAGER: ("#9ca3af", "s"), OURS: ("#1e3a8a", "o"), FLOOR: ("#000000", "x")}  # told apart in grey as well
Row = dict[str, str]


def read_rows(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read(name: str) -> list[Row]:
    return read_rows(RESULTS / f"{name}.csv")


def origin(rows: list[Row]) -> str:
    first = rows[0]
    return (
        f"{first['machine']}, torch {first['torch']}, commit {first['commit']}, {first['date']}; "
        f"`{first['command']}`, allocator: `{first['allocator']}`."
    )


def spread(row: Row, key: str) -> str:
    """Median and quantiles, or why there is none."""
    if row.get("why_not"):
        return f"not measured: {row['why_not']}"
    median, low, high = (
        f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
        for value in (float(row[name]) for name in (key, f"{key}_p20", f"{key}_p80"))
    )
    return f"{median} ({low} - {high})"


def rounded(error: str) -> str:
    return f"{float(error):.0e}" if error else ""


def ratio(number: str) -> str:
    """Two digits, or all before the point."""
    value = float(number)
    return f"{value:.2g}" if value < 99.5 else f"{value:,.0f}"


def times(row: Row) -> str:
    """Milliseconds and, in bold, how many times ours."""
    return (
        spread(row, "ms")
        if row.get("why_not")
        else f"{spread(row, 'ms')}, **{ratio(row.get('speedup') or row['times'])}**"
    )


def crossed(about: tuple[str, ...], cells: dict[tuple[tuple[str, ...], str], str]) -> str:
    """A table of cells by row and column; `about` heads what names a row."""
    columns = list(dict.fromkeys(column for _, column in cells))
    lines = ["| " + " | ".join([*about, *columns]) + " |", "|---" * (len(about) + len(columns)) + "|"]
    for row in dict.fromkeys(row for row, _ in cells):
        lines.append("| " + " | ".join([*row, *(cells.get((row, column), "") for column in columns)]) + " |")
    return "\n".join(lines)


def growth() -> str:
    """One row for each size; the columns are dtypes and implementations."""
    rows = read("growth")
    cells = {
        ((f"{int(row['elements']):,}", row["classes"]), f"{row['dtype']}: {row['implementation']}"): spread(row, "ns")
        for row in rows
    }
    return (
        crossed(("logits", "classes"), cells)
        + f"\n\nns per logit, forward and backward, median (p20 - p80). {origin(rows)}\n"
    )


def family_sizes() -> str:
    """One row for each loss and implementation; the columns are what a case's name ends in. Memory and error are those
    of the first."""
    rows = read("family_sizes")
    cells: dict[tuple[tuple[str, ...], str], str] = {}
    for row in rows:
        loss, _, setting = row["case"].split(", ")
        way = (
            loss,
            "the floor: read and, with a gradient, write"
            if row["implementation"].endswith("the floor)")
            else row["implementation"],
        )
        cells[way, setting] = times(row)
        if setting == "bf16" and not row["why_not"]:
            cells[way, "bf16: peak extra memory / logits"] = f"{float(row['peak_extra_logits']):.2f}"
            cells[way, "bf16: worst relative error of a gradient"] = rounded(row["worst_relative_error"])
    return (
        crossed(("loss", "implementation"), cells)
        + "\n\nms (p20 - p80), **/ focal_ext's**; forward and backward unless the column says forward alone. "
        f"{origin(rows)}\n"
    )


def pyramid_sizes() -> str:
    rows = read("pyramid_sizes")
    cells = {((row["implementation"],), row["layout"]): times(row) for row in rows}
    return (
        crossed(("way",), cells)
        + "\n\nms (p20 - p80), **/ pyramid op's**; forward and backward unless the column says forward alone. "
        f"{origin(rows)}\n"
    )


def layouts() -> str:
    """The first way of a case is what the others' times are told in."""
    rows = read("layouts")
    lines = [
        "| case | way | ms (p20 - p80) | / the first way's | peak extra memory / logits |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [row["case"], row["implementation"], spread(row, "ms"), ratio(row["times"])]
        lines.append("| " + " | ".join([*cells, f"{float(row['allocated_peak']):.2f}"]) + " |")
    return "\n".join(lines) + f"\n\nForward and backward. {origin(rows)}\n"


def sizes(name: str = "sizes") -> str:
    rows = read(name)
    lines = [
        "| logits | implementation | ms (p20 - p80) | / focal_ext's | peak extra memory / logits | relative error |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        bold = "**" if row["implementation"] == OURS else ""
        name = f"{bold}{row['implementation']}{bold}"
        about = (
            ("", "", "")
            if row["why_not"]
            else (ratio(row["speedup"]), f"{float(row['peak_extra_logits']):.2f}", rounded(row["worst_relative_error"]))
        )
        lines.append("| " + " | ".join([row["case"], name, spread(row, "ms"), *about]) + " |")
    return (
        "\n".join(lines)
        + "\n\nForward and backward unless the row says forward alone; the error is a gradient's largest, then the "
        f"value's. {origin(rows)}\n"
    )


def step() -> str:
    rows = read("step")
    lines = [
        "| network | loss | whole step, ms (p20 - p80) | the loss alone, ms (p20 - p80) | its share | step with eager "
        "/ this step |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            row["case"],
            row["implementation"],
            spread(row, "step_ms"),
            spread(row, "loss_ms"),
            f"{float(row['share']):.1%}",
            f"{float(row['gain']):.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + f"\n\n{origin(rows)}\n"


def step_sentence() -> str:
    """The first network's."""
    case = read("step")[0]["case"]
    eager, rows, pyramid = (
        next(row for row in read("step") if (row["case"], row["implementation"]) == (case, name))
        for name in (EAGER, "rows op", "pyramid op")
    )
    times = ", ".join(
        f"{float(row['step_ms']) / 1e3:.2f} s with {what} (the loss is {float(row['share']):.1%} of it)"
        for row, what in (
            (eager, "eager PyTorch"),
            (rows, "`sigmoid_focal_loss`"),
            (pyramid, "`pyramid.sigmoid_focal_loss`"),
        )
    )
    return f"A whole training step on the CPU ({case}) takes {times}.\n"


def draw_growth(to: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in read("growth") if row["ns"]]
    figure, axes = pyplot.subplots(1, 2, figsize=(8.4, 3.2), layout="constrained", sharey=True, width_ratios=(1.4, 1))
    for axis, sweep, label in zip(
        axes, ("elements", "classes"), ("logits (80 classes)", "classes (16 million logits)")
    ):
        for name, (colour, marker) in LINES.items():
            for dtype, style in (("fp32", "-"), ("bf16", "--")):
                line = [
                    row for row in rows if (row["sweep"], row["dtype"], row["implementation"]) == (sweep, dtype, name)
                ]
                places, values = [int(row[sweep]) for row in line], [float(row["ns"]) for row in line]
                axis.plot(
                    places,
                    values,
                    style,
                    marker=marker,
                    color=colour,
                    markersize=4,
                    linewidth=1.2,
                    label=f"{name.split(' (')[0]}, {dtype}",
                )
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.spines[["top", "right"]].set_visible(False)
    # 80 and 90 share a label's place
    classes = sorted({int(row["classes"]) for row in rows if row["sweep"] == "classes"} - {90})
    axes[1].set_xticks(classes, [str(c) for c in classes])
    axes[1].minorticks_off()
    axes[0].set_ylabel("ns per logit, forward + backward")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=7, frameon=False)
    figure.savefig(to, dpi=120)

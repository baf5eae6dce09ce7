# Owns: what docs/performance.md shows of the way from feature maps to the loss: a table and a figure from the CSV files
# of bench/head.py.
# Must not know: how the figures were measured.

from __future__ import annotations

from pathlib import Path

from .performance_page import read, times

AVAILABLE = 16 * 2**30
BATCHES = (1, 4)  # images of the straight line to the largest batch
COLOURS = {
    "eager PyTorch (torchvision)": "#9ca3af",
    "torch.compile, masked": "#6b7280",
    "rows op": "#93c5fd",
    "rows op, overwrite_inputs": "#0e7490",
    "pyramid op": "#2563eb",
    "pyramid op, overwrite_inputs": "#1e3a8a",
    "fused head": "#dc2626",
}


def section() -> str:
    """One row for each way: time of the loss alone and with the convolution, memory, the largest batch."""
    alone = {(row["layout"], row["implementation"]): row for row in read("pyramid")}
    timed, memory = {row["implementation"]: row for row in read("head")}, read("head_memory")

    def milliseconds(row: dict[str, str] | None) -> str:
        return times(row) if row else ""

    def mebibytes(name: str, classes: int, images: int) -> str:
        peak = peaks(memory, name, images).get(classes)
        return f"{peak / 2**20:,.0f}" if peak is not None else "not run"

    lines = [
        "| way | loss alone, ms (p20 - p80), **/ pyramid op's** | channels_last | convolution and loss, ms (p20 - "
        "p80), **/ fused head's** | MiB above features and parameters | 1203 classes, one image | largest batch in 16 "
        "GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in COLOURS:
        cells = [
            name,
            *(milliseconds(alone.get((layout, name))) for layout in ("contiguous", "channels_last")),
            milliseconds(timed.get(name)),
        ]
        lines.append(
            "| "
            + " | ".join([*cells, mebibytes(name, 80, 2), mebibytes(name, 1203, 1), str(largest_batch(memory, name))])
            + " |"
        )
    about = memory[0]
    return (
        "\n".join(lines)
        + f"\n\n{about['machine']}, torch {about['torch']}, {about['date']}; medians of interleaved rounds.\n"
    )


def peaks(table: list[dict[str, str]], name: str, images: int) -> dict[int, int]:
    """Peak bytes above features and parameters by number of classes."""
    return {
        int(row["classes"]): int(row["peak_extra_bytes"])
        for row in table
        if (row["implementation"], int(row["images"])) == (name, images)
    }


def largest_batch(table: list[dict[str, str]], name: str, classes: int = 80) -> int:
    """The images whose features, logits and all that is computed from them fit AVAILABLE bytes: the straight line
    through one and four images."""
    totals = [
        int(row["peak_extra_bytes"]) + int(row["leaves_bytes"])
        for images in BATCHES
        for row in table
        if (row["implementation"], int(row["classes"]), int(row["images"])) == (name, classes, images)
    ]
    slope = (totals[1] - totals[0]) / (BATCHES[1] - BATCHES[0])
    return int(1 + (AVAILABLE - totals[0]) // slope)


def draw(to: Path) -> None:
    """Peak memory of each way against the number of classes; of two ways on one line the second is dashed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    table = read("head_memory")
    figure, axis = pyplot.subplots(figsize=(7.5, 3.8), layout="constrained")
    for name, colour in COLOURS.items():
        points = peaks(table, name, 1)
        line = "o--" if "overwrite" in name else "o-"
        axis.plot(
            list(points), [value / 2**20 for value in points.values()], line, color=colour, label=name, markersize=4
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    classes = sorted({int(row["classes"]) for row in table})
    axis.set_xticks(classes, [str(c) for c in classes])
    axis.minorticks_off()
    axis.set_xlabel("classes")
    axis.set_ylabel("MiB above features and parameters", fontsize=9)
    axis.set_title("last convolution and loss, forward + backward, one image", fontsize=10)
    figure.legend(fontsize=8, frameon=False, loc="outside right upper")
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(to, dpi=150)

# Owns: what README.md and docs/performance.md show of bench/apart.py: tables and the README's figure from the CSV files.
# Must not know: how the figures were measured.

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .apart import BF16, CLASSES, CONVOLUTION, OUTPUTS, ROWS
from .cases import ANCHORS
from .head_page import AVAILABLE, BATCHES, largest_batch, peaks
from .performance_page import Row, ratio, read, rounded, spread

EAGER = "eager PyTorch (torchvision)"


class Way(NamedTuple):
    """A row of the README: its words, its names among rows of logits and among ways from the head's outputs, its colour in light and dark."""

    words: str
    short: str
    of_rows: str
    of_heads: str
    colour: str


WAYS = (
    Way("eager PyTorch (torchvision's formula)", "eager PyTorch", EAGER, EAGER, "#9ca3af"),
    Way("`torch.compile` of that formula", "torch.compile", "torch.compile, masked", "torch.compile, masked", "#6b7280"),
    Way("`torch.compile`, rewritten for it", "torch.compile,\nrewritten", "torch.compile, selected", "torch.compile, selected", "#6b7280"),
    Way("**`sigmoid_focal_loss`**", "sigmoid_focal_loss", "focal_ext", "rows op", "#2563eb"),
    Way("**`sigmoid_focal_loss_pyramid`**", "sigmoid_focal_loss\n_pyramid", "", "pyramid op", "#2563eb"),
    Way("**`FusedFocalHead`**", "FusedFocalHead", "", "fused head", "#dc2626"),
)
PANELS = {ROWS: "loss, fp32", BF16: "loss, bf16", OUTPUTS: "from the head's outputs, fp32"}


def measured() -> dict[tuple[str, str], Row]:
    return {(row["setting"], row["implementation"]): row for row in read("apart")}


def cell(rows: dict[tuple[str, str], Row], setting: str, name: str) -> str:
    """Median milliseconds and, in bold, how many times as fast as eager."""
    if (setting, name) not in rows:
        return ""
    ms, eager = (float(rows[setting, which]["ms"]) for which in (name, EAGER))
    time = f"{ms:.3g}" if ms < 1000 else f"{ms:,.0f}"
    return time if name == EAGER else f"{time}, **{ratio(str(eager / ms))}x**"


def logits_of(memory: list[Row], name: str) -> str:
    """Peak memory above features and parameters, in units of the logits of the largest measured batch."""
    images = max(BATCHES)
    return f"{peaks(memory, name, images)[CLASSES] / (images * ANCHORS * CLASSES * 4):.1f}"


def readme() -> str:
    """A row for each way: time, memory, error and largest batch together."""
    rows, memory = measured(), read("apart_memory")
    lines = [
        "| | loss of `[N, C]` rows, fp32, ms | the same in bf16, ms | from the head's outputs, fp32, ms | last convolution and loss, fp32, ms | its peak memory / logits | worst relative error of a gradient, fp32, bf16 | largest batch in 16 GiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        errors = [rows[key]["worst_relative_error"] for key in ((ROWS, way.of_rows), (BF16, way.of_rows), (OUTPUTS, way.of_heads)) if key in rows]
        error = ", ".join(rounded(e) for e in (errors[:2] if way.of_rows else errors))
        times = [cell(rows, ROWS, way.of_rows), cell(rows, BF16, way.of_rows), cell(rows, OUTPUTS, way.of_heads), cell(rows, CONVOLUTION, way.of_heads)]
        lines.append("| " + " | ".join([way.words, *times, logits_of(memory, way.of_heads), error, str(largest_batch(memory, way.of_heads))]) + " |")
    about = read("apart")[0]
    return "\n".join(lines) + f"\n\n{about['machine']}, torch {about['torch']}, commit {about['commit']}, {about['date']}: `{about['command']}`.\n"


def details() -> str:
    """Every row, with its spread."""
    rows = measured()
    lines = ["| what | implementation | ms (p20 - p80) | eager / this | peak extra memory / logits | worst relative error of a gradient |", "|---|---|---|---|---|---|"]
    for (setting, name), row in rows.items():
        times = ratio(str(float(rows[setting, EAGER]["ms"]) / float(row["ms"])))
        peak = f"{float(row['peak_extra_logits']):.2f}" if setting != CONVOLUTION else ""
        lines.append("| " + " | ".join([setting, name, spread(row, "ms"), times, peak, rounded(row["worst_relative_error"])]) + " |")
    about = next(iter(rows.values()))
    origin = f"{about['machine']}, torch {about['torch']}, commit {about['commit']}, {about['date']}; `{about['command']}`, allocator: `{about['allocator']}`."
    return "\n".join(lines) + f"\n\n{origin}\n"


def draw(to: Path, dark: bool) -> None:
    """Time of each way on one logarithmic axis for all panels, p20 to p80 as a bar, and the largest batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, memory = measured(), read("apart_memory")
    with pyplot.style.context("dark_background" if dark else "default"):
        figure, axes = pyplot.subplots(1, 4, figsize=(11.5, 2.7), layout="constrained", sharey=True)
        if dark:
            figure.set_facecolor("#0d1117")
        times = [float(row["ms"]) for (setting, _), row in rows.items() if setting in PANELS]
        for axis, (setting, title) in zip(axes, PANELS.items()):
            for place, way in enumerate(WAYS):
                row = rows.get((setting, way.of_heads if setting == OUTPUTS else way.of_rows))
                if row is None:
                    axis.text(min(times), place, "-", va="center", fontsize=8)
                    continue
                ms, low, high = (float(row[name]) for name in ("ms", "ms_p20", "ms_p80"))
                axis.errorbar(ms, place, xerr=[[ms - low], [high - ms]], fmt="o", color=way.colour, markersize=6, capsize=2)
                axis.text(high * 1.25, place, f"{ms:.3g}", va="center", fontsize=8)
            axis.set_xscale("log")
            axis.set_xlim(min(times) / 1.6, max(times) * 3)
            axis.set_xlabel("ms, forward + backward", fontsize=8)
            axis.set_title(title, fontsize=9)
        batches = [largest_batch(memory, way.of_heads) for way in WAYS]
        axes[3].barh(range(len(WAYS)), batches, color=[way.colour for way in WAYS], height=0.6)
        for place, batch in enumerate(batches):
            axes[3].text(batch + max(batches) * 0.02, place, str(batch), va="center", fontsize=8)
        axes[3].set_xlim(0, max(batches) * 1.2)
        axes[3].set_title(f"largest batch in {AVAILABLE // 2**30} GiB", fontsize=9)
        axes[3].set_xlabel("images", fontsize=8)
        axes[0].set_yticks(range(len(WAYS)), [way.short for way in WAYS], fontsize=8)
        axes[0].invert_yaxis()
        for axis in axes:
            axis.set_facecolor("none")
            axis.tick_params(labelsize=8)
            axis.grid(axis="x", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(to, dpi=150, facecolor=figure.get_facecolor())

# Owns: what README.md and docs/performance.md show of bench/apart.py: tables and the README's figure from the CSV
# files.
# Must not know: how the figures were measured.

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from .apart import BF16, CLASSES, CONVOLUTION, OUTPUTS, ROWS
from .cases import ANCHORS
from .head_page import AVAILABLE, BATCHES, largest_batch, peaks
from .performance_page import EAGER, FLOOR, Row, origin, ratio, read, rounded, spread


class Way(NamedTuple):
    """A row of the README: its words, its names among rows of logits and among ways from the head's outputs, its
    colour."""

    words: str
    short: str
    of_rows: str
    of_heads: str
    colour: str

    def name(self, setting: str) -> str:
        return self.of_heads if setting in (OUTPUTS, CONVOLUTION) else self.of_rows


WAYS = (
    Way("eager PyTorch (torchvision's formula)", "eager PyTorch", EAGER, EAGER, "#9ca3af"),
    Way(
        "`torch.compile` of that formula", "torch.compile", "torch.compile, masked", "torch.compile, masked", "#7c8798"
    ),
    Way(
        "`torch.compile`, rewritten for it",
        "torch.compile,\nrewritten",
        "torch.compile, selected",
        "torch.compile, selected",
        "#7c8798",
    ),
    Way("**`sigmoid_focal_loss`**", "sigmoid_focal_loss", "focal_ext", "rows op", "#2563eb"),
    Way("**`pyramid.sigmoid_focal_loss`**", "pyramid.\nsigmoid_focal_loss", "", "pyramid op", "#2563eb"),
    Way("**`FusedFocalHead`**", "FusedFocalHead", "", "fused head", "#dc2626"),
)
OF_DARK = {"#2563eb": "#60a5fa", "#dc2626": "#f87171"}  # the colours of ours on a dark background
PANELS = {ROWS: "rows [N, C], fp32", BF16: "rows [N, C], bf16", OUTPUTS: "the head's outputs, fp32"}


def measured() -> dict[tuple[str, str], Row]:
    return {(row["setting"], row["implementation"]): row for row in read("apart")}


def peaks_measured() -> list[Row]:
    """Memory of whole heads, in processes of their own as well."""
    return read("head_memory")


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
    peak = peaks(memory, name, images).get(CLASSES)
    return f"{peak / (images * ANCHORS * CLASSES * 4):.1f}" if peak else ""


def batch_of(memory: list[Row], name: str) -> int | None:
    """The largest batch; None where the memory was not measured."""
    return largest_batch(memory, name) if peaks(memory, name, max(BATCHES)) else None


def shown(rows: dict[tuple[str, str], Row]) -> dict[str, str]:
    """The settings of the README that have been measured, with their titles."""
    return {setting: title for setting, title in PANELS.items() if any(measured == setting for measured, _ in rows)}


def readme() -> str:
    """A row for each way: time, memory, error and largest batch together."""
    rows, memory = measured(), peaks_measured()
    settings = shown(rows)
    heads = [
        *(f"{title}, ms" for title in settings.values()),
        "peak memory / logits",
        "worst relative error of a gradient",
        f"largest batch in {AVAILABLE // 2**30} GiB",
    ]
    lines = ["| | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for way in WAYS:
        found = [
            (setting == BF16, float(rows[setting, way.name(setting)]["worst_relative_error"]))
            for setting in settings
            if (setting, way.name(setting)) in rows
        ]
        worst = {
            half: max(error for of_half, error in found if of_half == half)
            for half in dict.fromkeys(half for half, _ in found)
        }
        error = ", ".join(f"{rounded(str(e))}{' (bf16)' if half else ''}" for half, e in worst.items())
        cells = [
            *(cell(rows, setting, way.name(setting)) for setting in settings),
            logits_of(memory, way.of_heads),
            error,
            str(batch_of(memory, way.of_heads) or ""),
        ]
        lines.append("| " + " | ".join([way.words, *(cell or "-" for cell in cells)]) + " |")
    floors = ", ".join(
        f"{float(rows[setting, FLOOR]['ms']):.2g} ms in {setting.removeprefix('rows ')}"
        for setting in settings
        if (setting, FLOOR) in rows
    )
    about, other = next(iter(rows.values())), memory[0]
    commits = " and ".join(dict.fromkeys(f"{row['commit']} of {row['date']}" for row in (about, other)))
    return "\n".join(lines) + (
        f"\n\nThe floor, copying the logits once: {floors}. Each implementation ran in a process of its own, in turns."
        " Times are with memory kept; peaks and batches are with the default allocator, as kept memory hides what a"
        " step takes. -: a case of the other calls, or not measured. "
        f"{about['machine']}, torch {about['torch']}, commit {commits}: `{about['command']}`, `{other['command']}`.\n"
    )


def details() -> str:
    """Every row, with its spread."""
    rows = measured()
    lines = [
        "| what | implementation | ms (p20 - p80) | eager / this | peak extra memory / logits | worst relative error "
        "of a gradient |",
        "|---|---|---|---|---|---|",
    ]
    for (setting, name), row in rows.items():
        times = ratio(str(float(rows[setting, EAGER]["ms"]) / float(row["ms"])))
        peak = f"{float(row['peak_extra_logits']):.2f}" if setting != CONVOLUTION else ""
        lines.append(
            "| "
            + " | ".join([setting, name, spread(row, "ms"), times, peak, rounded(row["worst_relative_error"])])
            + " |"
        )
    return "\n".join(lines) + "\n\n" + " ".join(dict.fromkeys(origin([row]) for row in rows.values())) + "\n"


def draw(to: Path, dark: bool) -> None:
    """Time of each way on one logarithmic axis for all panels, p20 to p80 as a bar, and the largest batch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, memory = measured(), peaks_measured()
    settings = shown(rows)
    colours = [OF_DARK.get(way.colour, way.colour) if dark else way.colour for way in WAYS]
    with pyplot.style.context("dark_background" if dark else "default"):
        figure, axes = pyplot.subplots(
            1, len(settings) + 1, figsize=(2.9 * len(settings) + 2.8, 2.8), layout="constrained", sharey=True
        )
        if dark:
            figure.set_facecolor("#0d1117")
        times = [
            float(row["ms"]) for (setting, name), row in rows.items() if setting in settings and "overwrite" not in name
        ]
        for axis, (setting, title) in zip(axes, settings.items()):
            for place, (way, colour) in enumerate(zip(WAYS, colours)):
                if row := rows.get((setting, way.name(setting))):
                    ms, low, high = (float(row[name]) for name in ("ms", "ms_p20", "ms_p80"))
                    axis.errorbar(
                        ms, place, xerr=[[ms - low], [high - ms]], fmt="o", color=colour, markersize=6, capsize=2
                    )
                    axis.text(high * 1.25, place, f"{ms:.3g}", va="center", fontsize=8)
            floor = float(rows[ROWS if setting == OUTPUTS else setting, FLOOR]["ms"])  # the outputs have as many bytes
            axis.axvline(
                floor,
                linestyle="--",
                linewidth=1,
                color="#9ca3af" if dark else "#374151",
                label=f"copy of the logits, {floor:.2g} ms",
            )
            axis.legend(fontsize=7, frameon=False, loc="lower right")
            axis.set_xscale("log")
            axis.set_xlim(min(times) / 1.6, max(times) * 3.5)
            axis.set_xlabel("ms, forward + backward", fontsize=8)
            axis.set_title(title, fontsize=9)
        batches = [batch_of(memory, way.of_heads) or 0 for way in WAYS]
        axes[-1].barh(range(len(WAYS)), batches, color=colours, height=0.6)
        for place, batch in enumerate(batches):
            axes[-1].text(batch + max(batches) * 0.02, place, str(batch or "not measured"), va="center", fontsize=8)
        axes[-1].set_xlim(0, max(batches) * 1.2)
        axes[-1].set_title(f"largest batch in {AVAILABLE // 2**30} GiB", fontsize=9)
        axes[-1].set_xlabel("images", fontsize=8)
        axes[0].set_yticks(range(len(WAYS)), [way.short for way in WAYS], fontsize=8)
        axes[0].invert_yaxis()
        for axis in axes:
            axis.set_facecolor("none")
            axis.tick_params(labelsize=8)
            axis.set_axisbelow(True)
            axis.grid(axis="x", alpha=0.15 if dark else 0.25)
            axis.spines[["top", "right"]].set_visible(False)
        figure.savefig(to, dpi=150, facecolor=figure.get_facecolor())

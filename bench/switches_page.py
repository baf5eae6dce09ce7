# Owns: what docs/integrations.md shows of what the switches gain: a table from the CSV file.
# Must not know: how the figures were measured.

from __future__ import annotations

from .performance_page import ratio, read, spread


def shares(row: dict[str, str]) -> tuple[str, str]:
    """The loss's share of a training step, where a step was run."""
    if not row["step_ms_for_each"]:
        return "", ""
    step, before, after = (float(row[name]) for name in ("step_ms_for_each", "before_ms", "after_ms"))
    share, left = before / step, after / (step - before + after)
    return f"{share:.1%}", f"{left:.1%}" if share - left >= 0.005 else f"{left:.1%}: do not bother for the time"


def section() -> str:
    rows = read("switches")
    lines = [
        "| library | loss | logits | before, ms (p20 - p80) | after | times as fast | peak memory before, MB | after "
        "| share of a step, before | after |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        gain = (
            f"**{ratio(row['times'])}**" if float(row["times"]) >= 1.1 else f"{float(row['times']):.2f}: do not bother"
        )
        peaks = [f"{float(row[f'{name}_peak_MB']):,.1f}" for name in ("before", "after")]
        lines.append(
            "| "
            + " | ".join(
                [
                    row["library"],
                    row["loss"],
                    row["shape"],
                    spread(row, "before_ms"),
                    spread(row, "after_ms"),
                    gain,
                    *peaks,
                    *shares(row),
                ]
            )
            + " |"
        )
    first = rows[0]
    return (
        "\n".join(lines)
        + f"\n\n{first['machine']}, torch {first['torch']}, commit {first['commit']}, {first['date']}; "
        f"`{first['command']}`, memory kept.\n"
    )

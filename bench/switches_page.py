# Owns: what docs/integrations.md shows of what the switches gain: a table from the CSV file.
# Must not know: how the figures were measured.

from __future__ import annotations

from .performance_page import ratio, read, spread


def section() -> str:
    rows = read("switches")
    lines = [
        "| library | loss | logits | before, ms (p20 - p80) | after | times as fast | peak memory before, MB | after |",
        "|---|---|---|---|---|---|---|---|",
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

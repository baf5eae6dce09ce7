# Owns how the results of study.py become tables of docs/walkthrough.md.
# Must not know how a number was measured; it comes from docs/walkthrough/*.csv.

from .logbook import read
from .study import BASE, RESULTS, ROWS, settings_of


def results(name):
    path = RESULTS / f"{name}.csv"
    return read(path) if path.exists() else []


def figures(rows, column):
    """Mean, and least to most where there are several seeds."""
    values = [float(row[column]) for row in rows]
    spread = f" ({min(values):.3f} - {max(values):.3f})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3f}{spread}"


def rows_of(table):
    """The trainings of one table, over all data sets, as each was started."""
    yield "| data set | options | steps | AP50 | AP | recall |"
    yield "|---|---|---|---|---|---|"
    for name, wanted in ROWS.items():
        measured = [row for row in results(name) if row["table"] == table]
        for options in (options for of, options in wanted if of == table):
            seeds = [row for row in measured if row["options"] == options]
            cells = (
                [figures(seeds, column) for column in ("ap50", "ap", "recall")] if seeds else ["not trained yet"] * 3
            )
            yield f"| {name} | `{options}` | {settings_of(name, options).steps} | {' | '.join(cells)} |"


def grid():
    """AP50 over gamma and alpha on the nuclei."""
    cells = {}
    for row in results("nuclei"):
        if row["table"] == "grid":
            settings = settings_of("nuclei", row["options"])
            gamma = 0.0 if settings.loss == "balanced" else settings.gamma
            cells.setdefault((gamma, settings.alpha), []).append(row)
    gammas, alphas = (sorted({key[place] for key in cells}) for place in (0, 1))
    yield "| gamma | " + " | ".join(f"alpha {alpha:g}" for alpha in alphas) + " |"
    yield "|---|" + "---|" * len(alphas)
    for gamma in gammas:
        yield f"| {gamma:g} | " + " | ".join(figures(cells[gamma, alpha], "ap50") for alpha in alphas) + " |"


def bases():
    """The options that all rows of a data set share."""
    for options in BASE.values():
        yield f"    python -m examples.retinanet {options} ..."

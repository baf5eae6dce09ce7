# Owns how the results of study.py become tables of docs/walkthrough.md.
# Must not know how a number was measured; it comes from docs/walkthrough/*.csv.

from .logbook import read
from .study import BASE, RESULTS, ROWS, settings_of


def results(name):
    path = RESULTS / f"{name}.csv"
    return read(path) if path.exists() else []


def rows_of(table):
    """The trainings of one table, over all data sets, as each was started."""
    yield "| data set | options | steps | AP50 | AP | recall |"
    yield "|---|---|---|---|---|---|"
    missing = []
    for name, wanted in ROWS.items():
        trained = {row["options"]: row for row in results(name) if row["table"] == table}
        for options in (options for of, options in wanted if of == table):
            if options in trained:
                row = trained[options]
                figures = " | ".join(f"{float(row[column]):.3f}" for column in ("ap50", "ap", "recall"))
                yield f"| {name} | `{options}` | {row['steps']} | {figures} |"
            else:
                missing.append(f"{name} `{options}`")
    if missing:
        yield ""
        yield f"Not trained yet (`python -m examples.retinanet.study` does): {', '.join(missing)}."


def grid():
    """AP50 over gamma and alpha on the nuclei."""
    cells = {}
    for row in results("nuclei"):
        if row["table"] == "grid":
            settings = settings_of("nuclei", row["options"])
            gamma = 0.0 if settings.loss == "balanced" else settings.gamma
            cells[gamma, settings.alpha] = f"{float(row['ap50']):.3f}"
    gammas, alphas = (sorted({key[place] for key in cells}) for place in (0, 1))
    yield "| gamma | " + " | ".join(f"alpha {alpha:g}" for alpha in alphas) + " |"
    yield "|---|" + "---|" * len(alphas)
    for gamma in gammas:
        yield f"| {gamma:g} | " + " | ".join(cells.get((gamma, alpha), "not trained yet") for alpha in alphas) + " |"


def bases():
    """The options that all rows of a data set share."""
    for options in BASE.values():
        yield f"    python -m examples.retinanet {options} ..."

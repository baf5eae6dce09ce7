# Owns: what share of a whole training step the classification loss is, and what the step gains: the example's
# RetinaNet, three losses.
# Must not know: how any of them works.
"""python -m bench.step [--csv bench/results/step.csv] [--threads 2] [--quick]"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from examples.retinanet.anchors import grid_anchors
from examples.retinanet.heads import HEADS, over_rows
from examples.retinanet.criteria import box_loss
from examples.retinanet.model import RetinaNet, build

from . import baselines
from .compare import provenance, write
from .head import Steps, labels
from .measure import Step, hush, interleaved


class Setting(NamedTuple):
    images: int
    height: int
    width: int
    network: dict[str, object]


SETTINGS = {
    "heads of the paper's size, one image of 800 x 1344, 80 classes": Setting(
        1,
        800,
        1344,
        {"num_classes": 80, "in_channels": 3, "depth": 4, "channels": 256, "widths": (64, 64, 128, 256, 512)},
    ),
    "the example's network, 8 crops of 128 x 128, 1 class": Setting(8, 128, 128, {}),
}


def eager(logits: Tensor, targets: Tensor, alpha: float, gamma: float, reduction: str, normalizer: str) -> Tensor:
    """The baseline with the arguments of focal_ext.sigmoid_focal_loss; alpha, reduction and normaliser are its own."""
    return baselines.eager(logits.flatten(0, -2), targets.flatten(), gamma)


WAYS = {"eager PyTorch (torchvision)": over_rows(eager), "rows op": HEADS["rows"], "pyramid op": HEADS["pyramid"]}


@dataclass
class Training:
    """A batch with labels and the network that learns it. Reading images and matching anchors are not counted."""

    model: RetinaNet
    images: Tensor
    targets: Tensor
    anchors: Tensor
    truth: Tensor

    @classmethod
    def of(cls, setting: Setting) -> Training:
        model = build(0, **setting.network)
        images = torch.randn(
            setting.images,
            model.stem[0].in_channels,
            setting.height,
            setting.width,
            generator=torch.Generator().manual_seed(1),
        )
        anchors = grid_anchors(setting.height, setting.width)
        truth = (anchors + anchors.new_tensor([2.0, 1.0, 4.0, 3.0])).expand(setting.images, -1, -1)
        return cls(model, images, labels(setting.images, model.num_classes, len(anchors)), anchors, truth)

    def whole(self, way: Callable[..., Tensor], optimizer: torch.optim.Optimizer) -> Callable[[], None]:
        def run() -> None:
            features, code = self.model.towers(self.images)
            loss = way(features, self.model.classify[-1], self.model.num_classes, self.targets, 0.25, 2.0)
            optimizer.zero_grad()
            (loss + box_loss(code, self.anchors, self.truth, self.targets)).backward()
            optimizer.step()

        return run

    def levels(self) -> list[Tensor]:
        """The outputs of the last convolution of classification, as leaves."""
        with torch.no_grad():
            return [self.model.classify[-1](x).requires_grad_() for x in self.model.towers(self.images)[0]]


@dataclass
class TrainingStep(Step):
    """A whole step; `logits` is one of the parameters."""

    work: Callable[[], None] = lambda: None

    def ready(self) -> None:
        pass

    def run(self) -> None:
        self.work()


def last(x: Tensor) -> Tensor:
    return x


def rows_of(name: str, setting: Setting, seconds: float) -> list[dict[str, object]]:
    """The loss is timed alone as well, between the steps: forward and backward from the last convolution's output,
    permute and cat included."""
    training = Training.of(setting)
    optimizer = torch.optim.AdamW(training.model.parameters(), lr=1e-4)
    steps: dict[str, Step] = {}
    for way, head in WAYS.items():
        levels = training.levels()

        def alone(maps: Sequence[Tensor], head: Callable[..., Tensor] = head) -> Tensor:
            return head(maps, last, training.model.num_classes, training.targets, 0.25, 2.0)

        steps[f"{way}, whole"] = TrainingStep(
            torch.sum, training.model.classify[-1].weight, work=training.whole(head, optimizer)
        )
        steps[f"{way}, loss"] = Steps(alone, levels[0], leaves=levels)
    timings = interleaved(steps, seconds)
    reference = timings["eager PyTorch (torchvision), whole"].median
    rows = []
    for way in WAYS:
        whole, loss = timings[f"{way}, whole"], timings[f"{way}, loss"]
        rows.append(
            {
                "case": name,
                "implementation": way,
                "step_ms": whole.median * 1e3,
                "step_ms_p20": whole.p20 * 1e3,
                "step_ms_p80": whole.p80 * 1e3,
                "loss_ms": loss.median * 1e3,
                "loss_ms_p20": loss.p20 * 1e3,
                "loss_ms_p80": loss.p80 * 1e3,
                "rounds": whole.rounds,
                "share": loss.median / whole.median,
                "gain": reference / whole.median,
                "logits": sum(level.numel() for level in levels),
            }
        )
    return rows


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(
        description="The share of a training step that the classification loss takes, and what the step gains."
    )
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="only the small network")
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="timed seconds per network, all losses together; at least five rounds",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    chosen = list(SETTINGS.items())[-1:] if options.quick else SETTINGS.items()
    rows = [row for name, setting in chosen for row in rows_of(name, setting, options.seconds)]
    shown = [
        [
            row["case"],
            row["implementation"],
            f"{row['step_ms']:,.1f}",
            f"{row['loss_ms']:,.2f}",
            f"{row['share']:.1%}",
            f"{row['gain']:.3f}",
        ]
        for row in rows
    ]
    print(
        tabulate(
            shown,
            headers=["network", "loss", "step, ms", "loss alone, ms", "share", "eager step / this"],
            disable_numparse=True,
        )
    )
    write(options.csv, rows, provenance("cpu", "bench.step"))


if __name__ == "__main__":
    main()

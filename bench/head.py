# Owns: the comparison of ways from a detector's last feature maps to its loss: memory and time of the loss alone and of
# convolution and loss.
# Must not know: how any of them works, how figures are drawn.
"""python -m bench.head [--quick] [--threads 2]: writes bench/results/pyramid.csv, head.csv and head_memory.csv; with
--keep-memory pyramid_sizes.csv."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import focal_ext

from . import baselines
from .compare import keep_memory, provenance, threads, write
from .measure import Step, hush, interleaved, peak_bytes, system_bytes

# of a pyramid of strides 8 to 128 over an image of 800 x 1344
SIZES = (
    (100, 168),
    (50, 84),
    (25, 42),
    (13, 21),
    (7, 11),
)
ANCHORS, CHANNELS = 9, 256
RESULTS = Path(__file__).resolve().parent / "results"
Loss = Callable[[list[Tensor], Tensor, int], Tensor]


@dataclass
class Steps(Step):
    """A step over several leaves; `logits` is the first."""

    leaves: list[Tensor] = field(default_factory=list)
    forward: bool = False  # the value alone

    def ready(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None

    def run(self) -> None:
        with torch.set_grad_enabled(not self.forward):
            loss = self.loss(self.leaves)
        if not self.forward:
            loss.backward()


class Setting(NamedTuple):
    """What is asked of the loss alone."""

    memory: torch.memory_format = torch.contiguous_format
    dtype: torch.dtype = torch.float32
    forward: bool = False
    threads: int | None = None  # None: as the process has


LAYOUTS = {"contiguous": Setting(), "channels_last": Setting(torch.channels_last)}
SETTINGS = {
    **LAYOUTS,
    "bf16": Setting(dtype=torch.bfloat16),
    "fp32 forward alone": Setting(forward=True),
    "bf16 forward alone": Setting(dtype=torch.bfloat16, forward=True),
    "fp32 1 thread": Setting(threads=1),
    "bf16 1 thread": Setting(dtype=torch.bfloat16, threads=1),
}


def rows(levels: list[Tensor], classes: int) -> Tensor:
    """As detectors do: permute and cat to [anchors of all images, K]."""
    return torch.cat([x.permute(0, 2, 3, 1).reshape(len(x), -1, classes) for x in levels], dim=1).flatten(0, 1)


def over_rows(loss: Callable[[Tensor, Tensor, float], Tensor]) -> Loss:
    return lambda levels, ids, classes: loss(rows(levels, classes), ids.flatten(), 2.0)


def ours(levels: list[Tensor], ids: Tensor, classes: int, **options: bool) -> Tensor:
    return focal_ext.sigmoid_focal_loss(
        rows(levels, classes), ids.flatten(), reduction="sum", normalizer="positives", **options
    )


def pyramid(levels: list[Tensor], ids: Tensor, classes: int, **options: bool) -> Tensor:
    return focal_ext.pyramid.sigmoid_focal_loss(levels, ids, classes, normalizer="positives", **options)


LOSSES: dict[str, Loss] = {
    "eager PyTorch (torchvision)": over_rows(baselines.eager),
    # permute and cat compiled too: the same time
    "torch.compile, masked": over_rows(torch.compile(baselines.masked, dynamic=False)),
    "torch.compile, selected": over_rows(torch.compile(baselines.selected, dynamic=False)),
    "rows op": ours,
    "rows op, overwrite_inputs": lambda *call: ours(*call, overwrite_inputs=True),
    "pyramid op": pyramid,
    "pyramid op, overwrite_inputs": lambda *call: pyramid(*call, overwrite_inputs=True),
}
FUSED = "fused head"


CELLS = sum(h * w for h, w in SIZES)


def labels(images: int, classes: int, anchors: int = CELLS * ANCHORS) -> Tensor:
    """1 % of anchors positive, 1 % ignored."""
    generator = torch.Generator().manual_seed(0)
    shape = (images, anchors)
    draw = torch.rand(shape, generator=generator)
    ids = torch.where(draw < 0.01, torch.randint(0, classes, shape, generator=generator), -1)
    return ids.masked_fill((draw >= 0.01) & (draw < 0.02), -2)


def loss_step(name: str, classes: int, setting: Setting) -> Step:
    """The loss of one image alone; its logits are leaves."""
    generator, ids = torch.Generator().manual_seed(1), labels(1, classes)
    drawn = [torch.randn(1, ANCHORS * classes, *size, generator=generator) * 1.5 - 6 for size in SIZES]
    leaves = [x.to(setting.dtype, memory_format=setting.memory).requires_grad_() for x in drawn]
    return Steps(lambda levels: LOSSES[name](levels, ids, classes), leaves[0], leaves=leaves, forward=setting.forward)


def head_step(name: str, classes: int, images: int) -> Step:
    """The last convolution and the loss; features and parameters are leaves."""
    generator, ids = torch.Generator().manual_seed(1), labels(images, classes)
    features = [torch.randn(images, CHANNELS, *size, generator=generator).requires_grad_() for size in SIZES]
    weight = (torch.randn(ANCHORS * classes, CHANNELS, 3, 3, generator=generator) * 0.01).requires_grad_()
    bias = torch.full((ANCHORS * classes,), -4.6, requires_grad=True)

    def run(leaves: list[Tensor]) -> Tensor:
        *maps, w, b = leaves
        if name == FUSED:
            return focal_ext.conv_sigmoid_focal_loss(maps, w, b, ids, classes, normalizer="positives")
        return LOSSES[name]([F.conv2d(x, w, b, padding=1) for x in maps], ids, classes)

    return Steps(run, features[0], leaves=[*features, weight, bias])


def bytes_of(step: Step) -> int:
    assert isinstance(step, Steps)
    return sum(leaf.numel() * leaf.element_size() for leaf in step.leaves)


def measure_memory(name: str, classes: int, images: int) -> dict[str, object]:
    """Of this process, which must be fresh: what it holds at most in a step, the scratch memory of the convolution
    included."""
    warm = torch.randn(1, 8, 8, 8, requires_grad=True)  # libraries and thread pools are loaded before
    F.conv2d(warm, torch.randn(8, 8, 3, 3, requires_grad=True), padding=1).sum().backward()
    if name.startswith("torch.compile"):
        head_step(name, classes, images).gradient()  # the compiler's own memory is not the step's
    step = head_step(name, classes, images)
    before = system_bytes("self/status", "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts again
    step.ready()
    step.run()
    peak = system_bytes("self/status", "VmHWM") - before
    return {
        "implementation": name,
        "classes": classes,
        "images": images,
        "leaves_bytes": bytes_of(step),
        "peak_extra_bytes": peak,
    }


def in_fresh_process(name: str, classes: int, images: int, threads: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.head", "--one", name, str(classes), str(images), "--threads", str(threads)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def memory_rows(quick: bool, threads: int) -> list[dict[str, Any]]:
    """Every way at several numbers of classes and three batches; 1203 classes only where they fit an ordinary machine.

    A process holds up to 20 % less where its threads need their scratch memory at different times: of 80 classes, which
    the largest batch is told from, the most of three processes counts.
    """
    every = [*LOSSES, FUSED]
    wanted = [(name, classes, 1) for classes in ((80,) if quick else (1, 20, 80, 365)) for name in every]
    wanted += [] if quick else [(name, 80, images) for images in (2, 4) for name in every]
    wanted += [] if quick else [(name, 1203, 1) for name in ("pyramid op", "pyramid op, overwrite_inputs", FUSED)]
    calls = [call for call in wanted for _ in range(3 if call[1] == 80 and not quick else 1)]
    most: dict[tuple[str, int, int], dict[str, Any]] = {}
    for call in tqdm(calls, desc="memory", unit="process"):
        row = in_fresh_process(*call, threads)
        if call not in most or row["peak_extra_bytes"] > most[call]["peak_extra_bytes"]:
            most[call] = row
    return list(most.values())


def timed(steps: dict[str, Step], seconds: float, least: int, against: str, **about: object) -> list[dict[str, object]]:
    timings = interleaved(steps, seconds, least=least)
    return [
        {
            **about,
            "implementation": name,
            "ms": timing.median * 1e3,
            "ms_p20": timing.p20 * 1e3,
            "ms_p80": timing.p80 * 1e3,
            "ms_least": timing.least * 1e3,
            "rounds": timing.rounds,
            "times": timing.median / timings[against].median,
            "allocated_peak": peak_bytes(steps[name]) / bytes_of(steps[name]),
        }
        for name, timing in timings.items()
    ]


def loss_rows(settings: dict[str, Setting], seconds: float) -> list[dict[str, object]]:
    result = []
    for layout, setting in settings.items():
        torch._dynamo.reset()
        names = [name for name in LOSSES if "overwrite" not in name]  # a leaf cannot be overwritten
        steps = {name: loss_step(name, 80, setting) for name in names}
        with threads(setting.threads):
            result += timed(steps, seconds, 5, "pyramid op", layout=layout, classes=80, images=1)
    return result


def head_rows(quick: bool) -> list[dict[str, object]]:
    torch._dynamo.reset()
    images = 1 if quick else 2
    steps = {name: head_step(name, 80, images) for name in (*LOSSES, FUSED) if "overwrite" not in name}
    return timed(steps, 10 if quick else 45, 3 if quick else 4, FUSED, classes=80, images=images)


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(description="Compare ways from feature maps to the focal loss: memory and time.")
    parser.add_argument("--quick", action="store_true", help="one image, 80 classes, few rounds")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--to", type=Path, default=RESULTS, help="folder of the CSV files")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="the loss alone, in more settings, under the recommended allocator settings",
    )
    parser.add_argument("--only", choices=("pyramid", "head", "head_memory"))
    parser.add_argument(
        "--one", nargs=3, metavar=("WAY", "CLASSES", "IMAGES"), help="measure the memory of one way in this process"
    )
    options = parser.parse_args()
    if options.keep_memory:
        keep_memory("bench.head")
    torch.set_num_threads(options.threads)
    if options.one:
        name, classes, images = options.one
        print(json.dumps(measure_memory(name, int(classes), int(images))))
        return
    tables = {
        "pyramid": lambda: loss_rows(LAYOUTS, 10 if options.quick else 30),
        "head": lambda: head_rows(options.quick),
        "head_memory": lambda: memory_rows(options.quick, options.threads),
    }
    if options.keep_memory:
        tables = {"pyramid_sizes": lambda: loss_rows(SETTINGS, 2 if options.quick else 10)}
    for name, table in tables.items():
        if options.only in (None, name):
            write(options.to / f"{name}.csv", table(), provenance("cpu", "bench.head"))


if __name__ == "__main__":
    main()

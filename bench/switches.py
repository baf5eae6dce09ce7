# Owns: what the switches of focal_ext.compat gain: each library's own loss at sizes it is used with, before the switch
# and inside it.
# Must not know: formulas, how a switch works.
"""python -m bench.switches [--csv bench/results/switches.csv] [--only WORD] in an environment with the libraries: that
of make test-integrations"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from focal_ext import compat
from torch import Tensor

from . import library_steps as steps_of
from .compare import keep_memory, provenance, write
from .measure import Step, hush, interleaved, peak_bytes

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests/integrations"))
from stand_ins import beside

Loss = Callable[[Tensor], Tensor]
COCO, QUERIES = 80, 300


class Case(NamedTuple):
    """make() gives the loss and the shape of its logits; the switch is that of focal_ext.compat, or `instead` gives
    what is imported in its place. `step` makes a model's training step, with losses of `per_step` times these
    logits."""

    switch: str
    what: str
    make: Callable[[], tuple[Loss, tuple[int, ...]]]
    needs: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    instead: Callable[[], tuple[Loss, tuple[int, ...]]] | None = None
    step: Callable[[], steps_of.Step] | None = None
    per_step: float = 1.0


def module(name: str) -> Any:
    return importlib.import_module(name)


def ids(*shape: int, classes: int, share: float = 0.01, background: int = -1) -> Tensor:
    """Class ids of which `share` are positive."""
    return torch.randint(0, classes, shape).where(torch.rand(shape) < share, background)


def boxes(*shape: int) -> Tensor:
    return torch.rand(*shape, 4) * 0.3 + 0.3


def matched(
    images: int, each: int, queries: int = QUERIES, classes: int = COCO
) -> tuple[list[dict[str, Tensor]], list[tuple[Tensor, Tensor]]]:
    """Targets of DETRs and the queries that they are matched to."""
    targets = [
        {"class_labels": (labels := torch.randint(0, classes, (each,))), "labels": labels, "boxes": boxes(each)}
        for _ in range(images)
    ]
    return targets, [(torch.randperm(queries)[:each], torch.arange(each)) for _ in range(images)]


def detr(
    file: str, kind: str, method: str, numbers: dict[str, Any], queries: int = QUERIES, images: int = 4
) -> Callable[[], tuple[Loss, tuple[int, ...]]]:
    def make() -> tuple[Loss, tuple[int, ...]]:
        criterion = getattr(module(f"transformers.loss.{file}"), kind)
        made = criterion.__new__(criterion)
        torch.nn.Module.__init__(made)
        vars(made).update({"num_classes": COCO, **numbers})
        targets, indices = matched(images, 7, queries)
        predicted = boxes(images, queries)
        return lambda x: next(
            iter(getattr(made, method)({"logits": x, "pred_boxes": predicted}, targets, indices, 28.0).values())
        ), (images, queries, COCO)

    return make


def grounding_dino() -> tuple[Loss, tuple[int, ...]]:
    criterion = module("transformers.loss.loss_grounding_dino").GroundingDinoImageLoss
    made, (targets, indices) = criterion(None, 0.25, []), matched(4, 7, 900)
    maps, mask = tuple(torch.eye(COCO, 256) for _ in targets), (torch.arange(256) < 195).expand(4, 900, 256)
    return lambda x: made.loss_labels({"logits": x, "label_maps": maps, "text_mask": mask}, targets, indices, 28.0)[
        "loss_ce"
    ], (4, 900, 256)


def masks(file: str, name: str, points: int) -> Callable[[], tuple[Loss, tuple[int, ...]]]:
    def make() -> tuple[Loss, tuple[int, ...]]:
        target = (torch.rand(20, points) < 0.1).float()
        return lambda x: getattr(module(file), name)(x, target, 20), (20, points)

    return make


def torchvision(kind: str) -> Callable[[], tuple[Loss, tuple[int, ...]]]:
    anchors, images = {"RetinaNet": (201_600, 1), "FCOS": (22_400, 2)}[kind]

    def make() -> tuple[Loss, tuple[int, ...]]:
        detection = module("torchvision.models.detection")
        targets = [
            {"labels": torch.randint(0, 91, (7,)), "boxes": torch.tensor([[10.0, 10, 200, 100]]).repeat(7, 1)}
            for _ in range(images)
        ]
        found = [torch.randint(0, 7, (anchors,)).where(torch.rand(anchors) < 0.001, -1) for _ in targets]
        if kind == "RetinaNet":
            head = detection.retinanet.RetinaNetClassificationHead(8, 9, 91)
            return lambda x: head.compute_loss(targets, {"cls_logits": x}, found), (images, anchors, 91)
        head = detection.fcos.FCOSHead(32, 1, 91)
        outputs = {"bbox_regression": torch.rand(images, anchors, 4), "bbox_ctrness": torch.rand(images, anchors, 1)}
        places = [torch.tensor([[0.0, 0, 32, 32]]).repeat(anchors, 1)] * images
        return lambda x: head.compute_loss(targets, {**outputs, "cls_logits": x}, places, found)["classification"], (
            images,
            anchors,
            91,
        )

    return make


def yolo() -> tuple[Loss, tuple[int, ...]]:
    images, sides = 8, (80, 40, 20)
    anchors = sum(side * side for side in sides)
    detect = SimpleNamespace(stride=torch.tensor([8.0, 16, 32]), nc=COCO, reg_max=16)
    net = SimpleNamespace(
        args=SimpleNamespace(box=7.5, cls=0.5, dfl=1.5), model=[detect], parameters=lambda: iter([torch.zeros(1)])
    )
    criterion = module("ultralytics.utils.loss").v8DetectionLoss(net)
    batch = {
        "batch_idx": torch.arange(images).repeat_interleave(7).float(),
        "cls": torch.randint(0, COCO, (7 * images,)).float(),
        "bboxes": boxes(7 * images),
    }
    given = {"boxes": torch.randn(images, 64, anchors), "feats": [torch.empty(images, 1, side, side) for side in sides]}
    return lambda x: criterion({**given, "scores": x}, batch)[0].sum(), (images, COCO, anchors)


def rfdetr() -> tuple[Loss, tuple[int, ...]]:
    queries, groups = 300, 13
    criterion = module("rfdetr.models.criterion").SetCriterion(91, None, {}, 0.25, [], groups, ia_bce_loss=True)
    targets, indices = matched(4, 7 * groups, queries * groups)
    predicted = boxes(4, queries * groups)
    return lambda x: criterion.loss_labels(
        {"pred_logits": x, "pred_boxes": predicted}, targets, indices, torch.tensor(364.0), log=False
    )["loss_ce"], (4, queries * groups, 91)


def library_loss(
    name: str,
    loss: Callable[[Any], Any],
    target: Callable[[], Any],
    shape: tuple[int, ...],
    through: Loss | None = None,
) -> Callable[[], tuple[Loss, tuple[int, ...]]]:
    """A module of a library, made by `loss`, called with what `through` makes of the logits and a target."""

    def make() -> tuple[Loss, tuple[int, ...]]:
        made, goal = loss(module(name)), target()
        goals = goal if isinstance(goal, tuple) else (goal,)
        return lambda x: made(x if through is None else through(x), *goals), shape

    return make


TILES = (4, 21, 512, 512)
MMDET = {
    "needs": lambda: beside(
        "mmcv", "mmengine", "mmdet.registry", empty=("mmdet", "mmdet.models", "mmdet.models.losses")
    )
}
SAM3 = {"needs": lambda: beside("torchmetrics", "sam3.model", empty=("sam3", "sam3.train", "sam3.train.loss"))}
UNUSED = [f"rfdetr.utilities.{file}" for file in ("reproducibility", "state_dict", "package", "keypoints")]
RFDETR = {
    "needs": lambda: beside(
        "requests", "supervision", "deprecate", "pytorch_lightning", *UNUSED, empty=("rfdetr", "rfdetr.models")
    )
}
YOLO = {"needs": lambda: beside("cv2", "matplotlib", "requests", "psutil", "polars", "thop")}


def effdet() -> tuple[Loss, tuple[int, ...]]:
    loss, side, images = module("effdet.loss"), 64, 2
    targets, boxes_of = [ids(images, side, side, 9, classes=90, share=0.001)], [torch.zeros(images, side, side, 36)]
    found = [torch.zeros(images, 36, side, side)]
    return lambda x: loss.loss_fn([x], found, targets, boxes_of, torch.tensor([30.0]), 90, 0.25, 1.5, 0.1, 50.0, 0.01)[
        1
    ], (images, 9 * 90, side, side)


def fvcore(name: str) -> Callable[[], tuple[Loss, tuple[int, ...]]]:
    def labels() -> Tensor:
        return torch.nn.functional.one_hot(ids(67_200, classes=COCO, background=COCO), COCO + 1)[:, :-1].float()

    return library_loss(
        name, lambda m: lambda x, t: m.sigmoid_focal_loss(x, t, 0.25, 2.0, "sum"), labels, (67_200, COCO)
    )


CASES = [
    Case(
        "torchvision",
        "RetinaNet head, 1 image",
        torchvision("RetinaNet"),
        step=steps_of.torchvision("retinanet_resnet50_fpn", 1),
    ),
    Case("torchvision", "FCOS head, 2 images", torchvision("FCOS"), step=steps_of.torchvision("fcos_resnet50_fpn", 2)),
    Case(
        "transformers",
        "Deformable DETR",
        detr("loss_deformable_detr", "DeformableDetrImageLoss", "loss_labels", {"focal_alpha": 0.25}),
    ),
    Case(
        "transformers",
        "RT-DETR, D-FINE",
        detr("loss_rt_detr", "RTDetrLoss", "loss_labels_vfl", {"alpha": 0.75, "gamma": 2.0}),
        step=steps_of.rt_detr,
        per_step=7 + 6 * 196 / 300,  # encoder and decoder layers, and those of the denoising queries
    ),
    Case(
        "transformers",
        "DEIMv2",
        detr("loss_deimv2", "Deimv2Loss", "loss_labels_mal", {"gamma": 1.5, "mal_alpha": None}),
    ),
    Case(
        "transformers",
        "LW-DETR, RF-DETR, 13 groups",
        detr("loss_lw_detr", "LwDetrImageLoss", "loss_labels", {"focal_alpha": 0.25}, 3900),
    ),
    Case("transformers", "Grounding DINO", grounding_dino),
    Case(
        "transformers",
        "MaskFormer, masks of 512 x 512",
        masks("transformers.models.maskformer.modeling_maskformer", "sigmoid_focal_loss", 512 * 512),
    ),
    Case(
        "transformers",
        "Mask2Former, 12,544 points",
        masks("transformers.models.mask2former.modeling_mask2former", "sigmoid_cross_entropy_loss", 12_544),
    ),
    Case("rfdetr", "RF-DETR, 13 groups", rfdetr, **RFDETR),
    Case("ultralytics", "YOLOv8, assigner and boxes included", yolo, step=steps_of.yolo, **YOLO),
    Case(
        "segmentation_models_pytorch",
        "multiclass",
        library_loss(
            "segmentation_models_pytorch.losses",
            lambda m: m.FocalLoss("multiclass", 0.25, ignore_index=255),
            lambda: torch.randint(0, 21, (4, 512, 512)),
            TILES,
        ),
        step=steps_of.unet,
    ),
    Case(
        "segmentation_models_pytorch",
        "binary",
        library_loss(
            "segmentation_models_pytorch.losses",
            lambda m: m.FocalLoss("binary", 0.25),
            lambda: torch.randint(0, 2, (8, 1, 512, 512)),
            (8, 1, 512, 512),
        ),
    ),
    Case(
        "kornia",
        "softmax",
        library_loss(
            "kornia.losses",
            lambda m: m.FocalLoss(0.25, reduction="mean"),
            lambda: torch.randint(0, 21, (4, 512, 512)),
            TILES,
        ),
    ),
    Case(
        "kornia",
        "binary",
        library_loss(
            "kornia.losses",
            lambda m: m.BinaryFocalLossWithLogits(0.25, reduction="mean"),
            lambda: torch.randint(0, 2, TILES),
            TILES,
        ),
    ),
    Case(
        "monai",
        "sigmoid, 3-d",
        library_loss(
            "monai.losses",
            lambda m: m.FocalLoss(to_onehot_y=True),
            lambda: torch.randint(0, 5, (2, 1, 96, 96, 96)),
            (2, 5, 96, 96, 96),
        ),
        step=steps_of.unet_3d,
    ),
    Case(
        "monai",
        "softmax, 3-d",
        library_loss(
            "monai.losses",
            lambda m: m.FocalLoss(to_onehot_y=True, use_softmax=True),
            lambda: torch.randint(0, 5, (2, 1, 96, 96, 96)),
            (2, 5, 96, 96, 96),
        ),
    ),
    Case(
        "mmdet",
        "FocalLoss, ids",
        library_loss(
            "mmdet.models.losses.focal_loss",
            lambda m: m.FocalLoss(),
            lambda: ids(67_200, classes=COCO, background=COCO),
            (67_200, COCO),
        ),
        **MMDET,
    ),
    Case(
        "mmdet",
        "GaussianFocalLoss",
        library_loss(
            "mmdet.models.losses.gaussian_focal_loss",
            lambda m: m.GaussianFocalLoss(),
            lambda: torch.rand(4, COCO, 128, 128) ** 8,
            (4, COCO, 128, 128),
            lambda x: x.sigmoid().clamp(1e-4, 1 - 1e-4),
        ),
        **MMDET,
    ),
    Case("effdet", "D0, level of 64 x 64", effdet),
    Case("fvcore", "dense labels", fvcore("fvcore.nn.focal_loss"), instead=fvcore("focal_ext.compat.fvcore")),
    Case(
        "sam3",
        "3 masks an object",
        library_loss(
            "sam3.train.loss.loss_fns",
            lambda m: lambda x, t: m.sigmoid_focal_loss(x, t, 8.0, loss_on_multimask=True, triton=False).sum(),
            lambda: torch.rand(8, 3, 512, 512).round(),
            (8, 3, 512, 512),
        ),
        **SAM3,
    ),
]


def step_seconds(make: Callable[[], steps_of.Step], times: int = 3) -> float:
    """Forward and backward of a model with its library's own loss; the first is not counted."""
    step, taken = make(), []
    for _ in range(times + 1):
        start = time.perf_counter()
        step().backward()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def measured(case: Case, seconds: float) -> dict[str, object]:
    torch.manual_seed(0)
    with case.needs():
        switch = getattr(compat, case.switch)
        loss, shape = case.make()
        logits = (torch.randn(shape) * 2 - 3).requires_grad_()
        if case.switch == "torchvision":  # converted rather than patched: the head is in the loss
            converted = case.make()[0]
            head = next(
                cell.cell_contents for cell in converted.__closure__ if isinstance(cell.cell_contents, torch.nn.Module)
            )
            switch.convert_(torch.nn.ModuleList([head]))
            steps = {"before": Step(loss, logits), "after": Step(converted, logits)}
        elif case.instead:
            steps = {"before": Step(loss, logits), "after": Step(case.instead()[0], logits)}
        else:
            steps = {"before": Step(loss, logits, switch.restore), "after": Step(loss, logits, switch.apply)}
        timings, peaks = (
            interleaved(steps, seconds, in_a_row=20 if logits.numel() < 10**6 else 1),
            {name: peak_bytes(step) / 1e6 for name, step in steps.items()},
        )
        if case.switch != "torchvision" and not case.instead:
            switch.restore()
        step = step_seconds(case.step) * 1e3 / case.per_step if case.step else ""
    row: dict[str, object] = {"library": case.switch, "loss": case.what, "shape": " x ".join(f"{n:,}" for n in shape)}
    for name, timing in timings.items():
        row |= {
            f"{name}_ms": timing.median * 1e3,
            f"{name}_ms_p20": timing.p20 * 1e3,
            f"{name}_ms_p80": timing.p80 * 1e3,
            f"{name}_peak_MB": peaks[name],
        }
    times = timings["before"].median / timings["after"].median
    return {**row, "rounds": timings["after"].rounds, "times": times, "step_ms_for_each": step}


def main() -> None:
    keep_memory("bench.switches")
    hush()
    parser = argparse.ArgumentParser(description="Measure what the switches of focal_ext.compat gain.")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--only", default="", help="cases whose library or loss has this in its name")
    parser.add_argument("--seconds", type=float, default=4.0, help="for each case")
    options = parser.parse_args()
    rows = []
    for case in (case for case in CASES if options.only in f"{case.switch} {case.what}"):
        rows.append(measured(case, options.seconds))
        print(
            *(f"{value:.4g}" if isinstance(value, float) else value for value in rows[-1].values()),
            sep=" | ",
            flush=True,
        )
    write(options.csv, rows, provenance("cpu", "bench.switches"))


if __name__ == "__main__":
    main()

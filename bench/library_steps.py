# Owns: training steps of models of the libraries that focal_ext.compat serves, with the libraries' own losses.
# Must not know: focal_ext, clocks.
"""Every function makes an untrained model and a batch, and returns what computes a step's loss. Sizes are those of the
losses in bench/switches.py."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], Tensor]
OBJECTS = 7


def boxes(*shape: int) -> Tensor:
    """Centres and sizes, in shares of the image."""
    return torch.rand(*shape, 4) * 0.3 + 0.3


def corners(side: float) -> Tensor:
    centre, size = boxes(OBJECTS).split(2, -1)
    return torch.cat((centre - size / 2, centre + size / 2), -1) * side


def torchvision(kind: str, images: int) -> Callable[[], Step]:
    def make() -> Step:
        build = getattr(import_module("torchvision.models.detection"), kind)
        model = build(weights=None, weights_backbone=None, min_size=800, max_size=1344).train()
        pictures = [torch.rand(3, 800, 1344) for _ in range(images)]
        targets = [{"boxes": corners(800), "labels": torch.randint(1, 91, (OBJECTS,))} for _ in pictures]
        return lambda: sum(model(pictures, targets).values())

    return make


def rt_detr() -> Step:
    library = import_module("transformers")
    model = library.RTDetrForObjectDetection(library.RTDetrConfig(num_labels=80)).train()
    labels = [{"class_labels": torch.randint(0, 80, (OBJECTS,)), "boxes": boxes(OBJECTS)} for _ in range(4)]
    pictures = torch.rand(4, 3, 640, 640)
    return lambda: model(pixel_values=pictures, labels=labels).loss


def yolo() -> Step:
    model = import_module("ultralytics.nn.tasks").DetectionModel("yolov8n.yaml", nc=80, verbose=False).train()
    model.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
    batch = {
        "img": torch.rand(8, 3, 640, 640),
        "batch_idx": torch.arange(8).repeat_interleave(OBJECTS).float(),
        "cls": torch.randint(0, 80, (8 * OBJECTS,)).float(),
        "bboxes": boxes(8 * OBJECTS),
    }

    def step() -> Tensor:
        parts, _ = model(batch)
        return parts.sum()

    return step


def segmenter(model: Callable[[], Any], loss: Callable[[], Any], pictures: Tensor, labels: Tensor) -> Step:
    net, criterion = model().train(), loss()
    return lambda: criterion(net(pictures), labels)


def unet() -> Step:
    library = import_module("segmentation_models_pytorch")
    return segmenter(
        lambda: library.Unet("resnet34", encoder_weights=None, classes=21),
        lambda: library.losses.FocalLoss("multiclass", 0.25, ignore_index=255),
        torch.rand(4, 3, 512, 512),
        torch.randint(0, 21, (4, 512, 512)),
    )


def unet_3d() -> Step:
    return segmenter(
        lambda: import_module("monai.networks.nets").UNet(
            3, 1, 5, (16, 32, 64, 128, 256), (2, 2, 2, 2), num_res_units=2
        ),
        lambda: import_module("monai.losses").FocalLoss(to_onehot_y=True),
        torch.rand(2, 1, 96, 96, 96),
        torch.randint(0, 5, (2, 1, 96, 96, 96)),
    )

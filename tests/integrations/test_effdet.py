# Owns: effdet's detector, trained a few steps with its own loss and with the fused one in its place.
# Must not know: formulas.
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import effdet
import effdet.loss
import focal_ext
import pytest
import torch
from focal_ext import compat
from torch import Tensor, nn

CLASSES, SIZE, STEPS = 4, 128, 3
# effdet casts logits to float32: the two losses differ by some units of its epsilon. The network works in float64, lest
# those units move an activation across a corner of relu6.
TOLERANCE = 1e-6


def bench(smoothing: float) -> nn.Module:
    torch.manual_seed(3)
    config = effdet.get_efficientdet_config("tf_efficientdet_lite0")
    changes = {
        "image_size": (SIZE, SIZE),
        "num_classes": CLASSES,
        "fpn_channels": 16,
        "fpn_cell_repeats": 1,
        "box_class_repeats": 1,
    }
    config.update({**changes, "label_smoothing": smoothing, "jit_loss": False})
    return effdet.DetBenchTrain(effdet.EfficientDet(config, pretrained_backbone=False).double(), config)


def batch(step: int) -> tuple[Tensor, dict[str, Any]]:
    rng = torch.Generator().manual_seed(step)
    boxes = torch.tensor([[[10.0, 10, 60, 60], [50, 40, 100, 120]], [[5.0, 20, 50, 90 + step], [-1, -1, -1, -1]]])
    labels = torch.tensor([[1.0, 3], [2, -1]])  # effdet's files count from 1
    return torch.randn(2, 3, SIZE, SIZE, generator=rng, dtype=torch.float64), {
        "bbox": boxes,
        "cls": labels,
        "img_scale": None,
        "img_size": None,
    }


def train(
    smoothing: float, context: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Class loss, total loss and all gradients in one tensor, of each step."""
    found, net = [], bench(smoothing)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()  # the statistics of two images at 1 x 1 positions would amplify differences ten-thousandfold
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-4)
    for step in range(STEPS):
        with context():
            losses = net(*batch(step))
        optimizer.zero_grad()
        losses["loss"].backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found.append((losses["class_loss"].detach(), losses["loss"].detach(), gradient))
        optimizer.step()
    return found


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_losses_and_gradients_of_every_step_are_effdets(smoothing: float, assert_close: Callable[..., None]) -> None:
    for ours, theirs in zip(train(smoothing, compat.effdet.patched), train(smoothing), strict=True):
        for name, a, b in zip(("class loss", "loss", "gradients"), ours, theirs, strict=True):
            assert_close(f"effdet {name}", a, b, TOLERANCE)


def test_a_step_calls_the_fused_loss_once_for_all_levels_and_leaves_effdet_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls, original, fused = [], effdet.loss.loss_fn, focal_ext.pyramid.sigmoid_focal_loss
    monkeypatch.setattr(
        focal_ext.pyramid,
        "sigmoid_focal_loss",
        lambda *args, **options: calls.append(len(args[0])) or fused(*args, **options),
    )
    with compat.effdet.patched():
        bench(0.0)(*batch(0))
    assert calls == [5] and effdet.loss.loss_fn is original

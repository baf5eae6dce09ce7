# Owns: ultralytics' models, small and untrained, with their own classification loss and with the fused one.
# Must not know: formulas.
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import focal_ext
import pytest
import torch
from focal_ext import compat
from recipes import run, snippets
from stand_ins import beside
from torch import Tensor, nn

CLASSES = 5
# The network works in float64, its losses are added up in a float32 tensor, alike on both sides.
TOLERANCE = 1e-10


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if importlib.util.find_spec("ultralytics") is None:
        pytest.skip("ultralytics is not installed")
    with pytest.MonkeyPatch.context() as patch, beside("cv2", "matplotlib", "requests", "psutil", "polars", "thop"):
        patch.setenv("YOLO_CONFIG_DIR", str(tmp_path_factory.mktemp("ultralytics")))
        patch.setenv("YOLO_VERBOSE", "false")
        yield importlib.import_module("ultralytics.nn.tasks")


MODELS = {  # configuration, its class, columns of a box, times the classification loss is computed
    "YOLOv8": ("yolov8n.yaml", "DetectionModel", 4, 1),
    "YOLO26, two heads": ("yolo26n.yaml", "DetectionModel", 4, 2),
    "YOLO11, masks": ("yolo11n-seg.yaml", "SegmentationModel", 4, 1),
    "YOLOv8, oriented boxes": ("yolov8n-obb.yaml", "OBBModel", 5, 1),
}


def model(tasks: Any, name: str) -> nn.Module:
    torch.manual_seed(1)
    net = getattr(tasks, MODELS[name][1])(MODELS[name][0], nc=CLASSES, verbose=False).double().train()
    net.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, angle=1.0, overlap_mask=True, pose=12.0, kobj=1.0, epochs=10)
    return net


def batch(name: str) -> dict[str, Tensor]:
    """Two images: two boxes, and one."""
    rng = torch.Generator().manual_seed(3)
    boxes = torch.tensor([[0.3, 0.3, 0.4, 0.4], [0.6, 0.6, 0.5, 0.3], [0.5, 0.5, 0.6, 0.6]])
    if MODELS[name][2] == 5:
        boxes = torch.cat([boxes, torch.tensor([[0.1], [0.4], [-0.2]])], 1)
    masks = torch.randint(0, 2, (2, 16, 16), generator=rng).float()
    return {
        "img": torch.rand(2, 3, 64, 64, generator=rng, dtype=torch.float64),
        "cls": torch.tensor([1.0, 4, 0]),
        "batch_idx": torch.tensor([0.0, 0, 1]),
        "bboxes": boxes,
        "masks": masks,
    }


def losses_and_gradients(net: nn.Module, name: str) -> tuple[Tensor, Tensor]:
    loss, _ = net(batch(name))
    loss.sum().backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", MODELS)
def test_losses_and_gradients_are_ultralytics(
    tasks: Any, name: str, assert_close: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = losses_and_gradients(model(tasks, name), name)
    calls, fused = [], focal_ext.losses.sigmoid_focal_loss
    monkeypatch.setattr(
        focal_ext.losses,
        "sigmoid_focal_loss",
        lambda *args, **options: calls.append(args[0].shape) or fused(*args, **options),
    )
    with compat.ultralytics.patched():
        ours = losses_and_gradients(model(tasks, name), name)
    run(snippets("ultralytics")[0])
    assert len(compat.ultralytics.restore()) == 3
    assert len(calls) == MODELS[name][3] and all(shape[1] == CLASSES for shape in calls)
    for a, b in zip(ours, theirs, strict=True):
        assert_close(f"ultralytics {name}", a, b, TOLERANCE)


def test_weights_of_classes_count_and_a_loss_of_the_users_own_is_left_alone(
    tasks: Any, assert_close: Callable[..., None]
) -> None:
    def losses(own: Any = None) -> tuple[Tensor, Tensor]:
        net = model(tasks, "YOLOv8")
        net.class_weights = torch.linspace(0.5, 2, CLASSES)
        net.criterion = net.init_criterion()
        if own is not None:
            net.criterion.bce = own
        found = losses_and_gradients(net, "YOLOv8")
        assert isinstance(net.criterion.bce, nn.BCEWithLogitsLoss) and net.criterion.class_weights.shape == (
            1,
            1,
            CLASSES,
        )
        return found

    mine = type("Mine", (nn.BCEWithLogitsLoss,), {})(reduction="none")
    theirs = losses(), losses(mine)
    with compat.ultralytics.patched():
        for ours, want in zip((losses(), losses(mine)), theirs):
            for a, b in zip(ours, want, strict=True):
                assert_close("ultralytics, weights of classes", a, b, TOLERANCE)


@pytest.mark.parametrize(
    "options, boxes, count",
    [
        ({"use_vfl": True}, 3, 1),
        ({"use_vfl": True}, 0, 1),
        ({"gamma": 2.0, "alpha": 0.0}, 3, 1),
        ({"use_fl": False}, 3, 0),
    ],
    ids=str,
)
def test_rt_detrs_classes_are_ultralytics(
    tasks: Any,
    options: dict[str, Any],
    boxes: int,
    count: int,
    assert_close: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = torch.Generator().manual_seed(4)
    logits = torch.randn(2, 9, CLASSES, generator=rng, dtype=torch.float32).requires_grad_()
    targets = torch.randint(0, CLASSES, (2, 9), generator=rng).where(
        torch.rand(2, 9, generator=rng) < 0.3 * (boxes > 0), CLASSES
    )
    scores = torch.rand(2, 9, generator=rng) * (targets < CLASSES)
    # a matched query whose box does not overlap
    scores[targets < CLASSES] *= (torch.arange(int((targets < CLASSES).sum())) > 0).float()
    loss = importlib.import_module("ultralytics.models.utils.loss").DETRLoss(
        CLASSES, loss_gain={"class": 2, "bbox": 5, "giou": 2}, **options
    )
    calls: list[str] = []
    for name in ("sigmoid_focal_loss", "varifocal_loss"):
        fused = getattr(focal_ext.losses, name)
        monkeypatch.setattr(
            focal_ext.losses,
            name,
            lambda *args, fused=fused, name=name, **options: calls.append(name) or fused(*args, **options),
        )
    found = []
    for is_switched in (False, True):
        with compat.ultralytics.patched() if is_switched else torch.enable_grad():
            (value,) = loss._get_loss_class(logits, targets, scores, boxes, "_aux").values()
        found.append((value.detach(), torch.autograd.grad(value, logits)[0]))
    assert len(calls) == count
    for theirs, ours in zip(*found, strict=True):
        assert_close("ultralytics RT-DETR", ours, theirs, 1e-6)  # computed in float32 there

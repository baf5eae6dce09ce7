# Owns: torchvision's RetinaNet and FCOS, trained a few steps with their own loss and with each way to the fused one.
# Must not know: formulas.
from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
import torchvision
from focal_ext import compat
from focal_ext.compat.torchvision import convert_, losses_and_detections
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet, fcos, retinanet
from torchvision.models.detection.anchor_utils import AnchorGenerator

CLASSES, SIZE, STEPS, CHANNELS = 5, 64, 3, 32  # FCOS normalises groups of 32 channels
# Everything runs in float64: differences are roundings, which three steps of training amplify little.
TOLERANCE = 1e-10


def backbone() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, CHANNELS, 3, 2, 1))
    net.out_channels = CHANNELS
    return net


def model(kind: type[nn.Module]) -> nn.Module:
    torch.manual_seed(2)
    ratios = (0.5, 1.0, 2.0) if kind is RetinaNet else (1.0,)
    anchors = AnchorGenerator(((16, 32) if kind is RetinaNet else (8,),), (ratios,))
    return kind(backbone(), CLASSES, anchor_generator=anchors, min_size=SIZE, max_size=SIZE).double().train()


def batch(step: int) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Three images: two boxes, one, none."""
    rng = torch.Generator().manual_seed(step)
    images = [torch.rand(3, SIZE, SIZE, generator=rng, dtype=torch.float64) for _ in range(3)]
    boxes = [[[4.0, 6, 28, 30], [30, 20, 62, 50]], [[10.0 + step, 8, 40, 38]], []]
    labels = [[1, 4], [step], []]
    targets = [
        {"boxes": torch.tensor(b, dtype=torch.float64).reshape(-1, 4), "labels": torch.tensor(c, dtype=torch.int64)}
        for b, c in zip(boxes, labels)
    ]
    return images, targets


def train(net: nn.Module, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> list[dict[str, Tensor]]:
    """Losses, and the gradients of all parameters in one tensor, of each step."""
    found, optimizer = [], torch.optim.SGD(net.parameters(), lr=0.01)
    for step in range(STEPS):
        with context():
            losses = net(*batch(step))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters()])
        found.append({**{k: v.detach() for k, v in losses.items()}, "gradients": gradients})
        optimizer.step()
    return found


def built_with_head(net: nn.Module) -> nn.Module:
    """The head made by its constructor, with the weights of the model's own."""
    if isinstance(net, RetinaNet):
        head = compat.torchvision.RetinaNetClassificationHead(CHANNELS, 6, CLASSES).double()
        head.load_state_dict(net.head.classification_head.state_dict())
        net.head.classification_head = head
    else:
        head = compat.torchvision.FCOSHead(CHANNELS, 1, CLASSES).double()
        head.load_state_dict(net.head.state_dict())
        net.head = head
    return net


WAYS: dict[str, Callable[[nn.Module], list[dict[str, Tensor]]]] = {
    "converted": lambda net: train(convert_(net)),
    "head from its constructor": lambda net: train(built_with_head(net)),
    "patched": lambda net: train(net, compat.torchvision.patched),
}


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradients_of_every_step_are_torchvisions(
    kind: type[nn.Module], way: str, assert_close: Callable[..., None]
) -> None:
    for ours, theirs in zip(WAYS[way](model(kind)), train(model(kind)), strict=True):
        assert ours.keys() == theirs.keys() and theirs["classification"] > 0
        for name in theirs:
            assert_close(f"torchvision {kind.__name__}, {way}", ours[name], theirs[name], TOLERANCE)


def test_the_batches_hold_what_can_go_wrong() -> None:
    """Ignored anchors, an image without boxes: seen by the head of RetinaNet."""
    net, seen = convert_(model(RetinaNet)), []
    original = type(net.head.classification_head).compute_loss
    net.head.classification_head.compute_loss = lambda targets, outputs, matched: (
        seen.extend(matched) or original(net.head.classification_head, targets, outputs, matched)
    )
    net(*batch(0))
    assert bool((seen[0] == -2).any()) and bool((seen[0] >= 0).any()) and bool((seen[2] == -1).all())


def test_the_model_that_took_the_head_has_the_same_weights_and_detections() -> None:
    image = [batch(0)[0][0]]
    net = model(RetinaNet)
    before, names = net.eval()(image)[0]["scores"], list(net.state_dict())
    assert torch.equal(convert_(net)(image)[0]["scores"], before) and list(net.state_dict()) == names


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_a_label_that_the_model_has_no_class_for_is_named(kind: type[nn.Module]) -> None:
    images, targets = batch(0)
    targets[0]["labels"] = torch.tensor([1, CLASSES])
    with pytest.raises(
        ValueError,
        match=rf"class id {CLASSES} at anchor .*torchvision labels: 0\.\.4; build the model with num_classes above",
    ):
        convert_(model(kind))(images, targets)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_a_converted_detector_scripts_also_inside_another_module_and_stays_converted(
    kind: type[nn.Module], assert_close: Callable[..., None]
) -> None:
    net = convert_(model(kind))
    kept = [type(module) for module in net.modules()]
    scripted = torch.jit.script(net)
    losses, _ = scripted(*batch(0))
    # scripting itself moves torchvision's FCOS by 1e-10
    for name, want in torch.jit.script(model(kind))(*batch(0))[0].items():
        assert_close(f"torchvision {kind.__name__}, scripted", losses[name], want, TOLERANCE)
    _, detections = scripted.eval()(batch(0)[0])
    assert torch.equal(detections[0]["scores"], net.eval()(batch(0)[0])[0]["scores"])
    torch.jit.script(nn.ModuleList([net]))
    assert [type(module) for module in net.modules()] == kept and net.head.compute_loss.__name__ == "compute_loss"


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
def test_a_converted_detector_pickles_copies_and_exports_as_the_plain_one(kind: type[nn.Module]) -> None:
    net, plain = convert_(model(kind)), model(kind)
    want = net(*batch(0))["classification"]
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(*batch(0))["classification"], want)
    features = [torch.rand(1, CHANNELS, 8, 8, dtype=torch.float64)]
    ours, theirs = (
        torch.export.export(detector.eval().head, (features,)).module()(features) for detector in (net, plain)
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("kind", [RetinaNet, FCOS])
@pytest.mark.parametrize("converts", [True, False])
def test_the_losses_of_validation_are_those_of_training_beside_the_detections(
    kind: type[nn.Module], converts: bool, assert_close: Callable[..., None]
) -> None:
    theirs, net = model(kind), convert_(model(kind)) if converts else model(kind)
    want = theirs(*batch(0))
    with torch.no_grad():
        losses, detections = losses_and_detections(net.eval(), *batch(0))
        assert torch.equal(detections[0]["scores"], theirs.eval()(batch(0)[0])[0]["scores"])
    assert losses.keys() == want.keys() and not net._forward_hooks and not net.head._forward_hooks
    for name in want:
        assert_close(f"torchvision {kind.__name__}, validation", losses[name], want[name], TOLERANCE)


def test_what_cannot_be_converted_is_named() -> None:
    with pytest.raises(TypeError, match="model: has no head of torchvision's RetinaNet or FCOS, got Linear"):
        convert_(nn.Linear(2, 2))
    net = model(RetinaNet)
    net.head.classification_head.__class__ = type("Mine", (retinanet.RetinaNetClassificationHead,), {})
    with pytest.raises(
        TypeError,
        match=(
            r"model: Mine is a class of your own; derive it from "
            r"focal_ext.compat.torchvision.RetinaNetClassificationHead"
        ),
    ):
        convert_(net)
    with pytest.raises(ValueError, match="model: must be in eval mode"):
        losses_and_detections(net, *batch(0))
    with pytest.raises(
        ValueError, match="targets: must be a list with the boxes and labels of each of 3 images, got NoneType"
    ):
        losses_and_detections(net.eval(), batch(0)[0], None)
    with pytest.raises(TypeError, match="model: must be torchvision's RetinaNet or FCOS, got Sequential"):
        losses_and_detections(nn.Sequential(net), *batch(0))


def test_patched_restores_every_module_that_has_the_name_also_after_an_exception() -> None:
    original = torchvision.ops.sigmoid_focal_loss
    assert original is retinanet.sigmoid_focal_loss is fcos.sigmoid_focal_loss
    with pytest.raises(KeyError), compat.torchvision.patched() as names:
        assert (
            retinanet.sigmoid_focal_loss
            is fcos.sigmoid_focal_loss
            is torchvision.ops.sigmoid_focal_loss
            is not original
        )
        assert {
            "torchvision.models.detection.retinanet.sigmoid_focal_loss",
            "torchvision.ops.sigmoid_focal_loss",
        } <= set(names)
        raise KeyError
    assert original is retinanet.sigmoid_focal_loss is fcos.sigmoid_focal_loss is torchvision.ops.sigmoid_focal_loss

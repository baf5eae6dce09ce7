# Owns: RF-DETR's own criterion on random outputs of its layers, before the switch and inside it.
# Must not know: formulas.
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import focal_ext
import pytest
import torch
from focal_ext import compat
from recipes import run, snippets
from stand_ins import beside
from torch import Tensor

LAYERS, IMAGES, QUERIES, CLASSES = 3, 2, 10, 6
TOLERANCE = 1e-10  # all in float64
UNUSED = [f"rfdetr.utilities.{file}" for file in ("reproducibility", "state_dict", "package", "keypoints")]


@pytest.fixture(scope="module")
def own() -> Iterator[Any]:
    if importlib.util.find_spec("rfdetr") is None:
        pytest.skip("rfdetr is not installed")
    with beside(
        "requests", "supervision", "deprecate", "pytorch_lightning", *UNUSED, empty=("rfdetr", "rfdetr.models")
    ):
        yield importlib.import_module("rfdetr.models.criterion")


def outputs() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """The outputs of each layer, and the targets: three boxes, and one."""
    rng = torch.Generator().manual_seed(7)

    def boxes(*shape: int) -> Tensor:
        return torch.rand(*shape, 4, generator=rng, dtype=torch.float64) * 0.3 + 0.3

    layers = [
        {
            "pred_logits": (
                torch.randn(IMAGES, QUERIES, CLASSES, generator=rng, dtype=torch.float64) * 2
            ).requires_grad_(),
            "pred_boxes": boxes(IMAGES, QUERIES),
        }
        for _ in range(LAYERS)
    ]
    return layers, [{"labels": torch.randint(0, CLASSES, (n,), generator=rng), "boxes": boxes(n)} for n in (3, 1)]


def criterion(own: Any, **options: Any) -> Any:
    matcher = importlib.import_module("rfdetr.models.matcher").HungarianMatcher()
    return own.SetCriterion(CLASSES, matcher, {}, 0.25, ["labels", "boxes", "cardinality"], **options)


def losses_and_gradients(own: Any, pads: bool = False, **options: Any) -> dict[str, Tensor]:
    (last, *others), targets = outputs()
    if pads:  # to four targets each, of which the last are none
        targets = [
            {
                key: torch.cat([value, value.new_full((4 - len(value), *value.shape[1:]), 0.4).to(value.dtype)])
                for key, value in t.items()
            }
            | {"valid": torch.arange(4) < len(t["labels"])}
            for t in targets
        ]
    found = criterion(own, **options)({**last, "aux_outputs": others[:1], "enc_outputs": others[1]}, targets)
    gradients = torch.autograd.grad(
        sum(value for key, value in found.items() if key.startswith("loss_ce")),
        [layer["pred_logits"] for layer in (last, *others)],
    )
    return {key: value.detach() for key, value in found.items()} | {
        f"gradient {number}": grad for number, grad in enumerate(gradients)
    }


WAYS: dict[str, dict[str, Any]] = {
    "IoU-aware": {"ia_bce_loss": True},
    "IoU-aware, padded targets": {"ia_bce_loss": True, "pads": True},
    "focal": {},
    "varifocal": {"use_varifocal_loss": True},
    "position": {"use_position_supervised_loss": True},
}


@pytest.mark.parametrize("way", WAYS)
def test_losses_and_gradients_of_every_layer_are_rfdetrs(
    own: Any, way: str, assert_close: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, calls = losses_and_gradients(own, **WAYS[way]), []
    for name in ("iou_aware_bce_loss", "sigmoid_focal_loss"):
        fused = getattr(focal_ext.losses, name)
        monkeypatch.setattr(
            focal_ext.losses, name, lambda *args, fused=fused, **options: calls.append(1) or fused(*args, **options)
        )
    run(snippets("RF-DETR")[0])
    ours = losses_and_gradients(own, **WAYS[way])
    assert "rfdetr.models.criterion.SetCriterion.loss_labels" in compat.rfdetr.restore()
    assert (
        len(calls) == (LAYERS if way in ("IoU-aware", "IoU-aware, padded targets", "focal") else 0)
        and ours.keys() == theirs.keys()
    )
    for name in theirs:
        assert_close(f"rfdetr {way}", ours[name].double(), theirs[name].double(), TOLERANCE)


def test_all_layers_at_once_are_rfdetrs(own: Any, assert_close: Callable[..., None]) -> None:
    layers, targets = outputs()
    logits, boxes = (torch.stack([layer[name] for layer in layers]).detach() for name in ("pred_logits", "pred_boxes"))
    images, queries = torch.tensor([0, 0, 0, 1]), torch.tensor([4, 1, 7, 2])
    matched = [torch.cat([t[key] for t in targets]) for key in ("labels", "boxes")]
    rest = [
        value.expand(LAYERS, *value.shape)
        for value in (images, queries, *matched, torch.tensor([1.0, 1, 0, 1], dtype=torch.float64))
    ]
    found = []
    for function in (own._batched_detection_loss_tensors, None):
        leaf = logits.clone().requires_grad_()
        with compat.rfdetr.patched() if function is None else torch.enable_grad():
            results = own._batched_detection_loss_tensors(
                leaf, boxes, *rest, torch.tensor([3, 1]), torch.tensor(4.0), 0.25
            )
        gradient = torch.autograd.grad(results[0], leaf, torch.linspace(0.5, 1.5, LAYERS, dtype=torch.float64))
        found.append([value.detach() for value in (*results, *gradient)])
    for theirs, ours in zip(*found, strict=True):
        assert_close("rfdetr, all layers at once", ours, theirs, TOLERANCE)


def test_the_loss_of_masks_is_rfdetrs(own: Any, assert_close: Callable[..., None]) -> None:
    rng = torch.Generator().manual_seed(8)
    x, t = torch.randn(4, 30, generator=rng, dtype=torch.float64), torch.randint(0, 2, (4, 30), generator=rng).double()
    theirs = [getattr(own, name)(x, t, torch.tensor(3.0)) for name in ("sigmoid_ce_loss", "sigmoid_ce_loss_jit")]
    with compat.rfdetr.patched():
        for name, want in zip(("sigmoid_ce_loss", "sigmoid_ce_loss_jit"), theirs):
            assert_close("rfdetr, masks", getattr(own, name)(x, t, torch.tensor(3.0)), want, TOLERANCE)

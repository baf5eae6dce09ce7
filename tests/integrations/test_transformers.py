# Owns: every detection loss of transformers' LOSS_MAPPING on random outputs, before the switch and inside it; the
# page's table of them.
# Must not know: models, formulas. test_transformers_training.py trains them.
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import focal_ext
import pytest
import torch
import transformers
from focal_ext import compat
from recipes import sections
from torch import Tensor
from transformers.loss.loss_utils import LOSS_MAPPING
from transformers.models.mask2former import modeling_mask2former
from transformers.models.maskformer import modeling_maskformer

IMAGES = LAYERS = 2  # some losses have layers first, some images
QUERIES, CLASSES, SIDE = 12, 5, 16
# tensors in them are
IN_FLOAT32 = (
    "RfDetrForInstanceSegmentation",
    "ForSegmentation",
    "GroundingDinoForObjectDetection",
    "MMGroundingDinoForObjectDetection",
)
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-6}
# DETR: softmax cross entropy of the classes
PLAIN = (
    "ForObjectDetection",
    "ForSegmentation",
    "ForSemanticSegmentation",
)
ENTRIES: dict[str, tuple[str, str]] = {  # of LOSS_MAPPING: the configuration, and the losses that are fused
    "ForSegmentation": ("DetrConfig", "sigmoid_focal_loss"),
    "DeformableDetrForObjectDetection": ("DeformableDetrConfig", "sigmoid_focal_loss"),
    "ConditionalDetrForObjectDetection": ("ConditionalDetrConfig", "sigmoid_focal_loss"),
    "ConditionalDetrForSegmentation": ("ConditionalDetrConfig", "sigmoid_focal_loss"),
    "DabDetrForObjectDetection": ("DabDetrConfig", "sigmoid_focal_loss"),
    "GroundingDinoForObjectDetection": ("GroundingDinoConfig", "sigmoid_focal_loss"),
    "MMGroundingDinoForObjectDetection": ("MMGroundingDinoConfig", "sigmoid_focal_loss"),
    "RTDetrForObjectDetection": ("RTDetrConfig", "varifocal_loss"),
    "RTDetrV2ForObjectDetection": ("RTDetrV2Config", "varifocal_loss"),
    "DFineForObjectDetection": ("DFineConfig", "varifocal_loss"),
    "Deimv2ForObjectDetection": ("Deimv2Config", "matchability_aware_loss"),
    "LwDetrForObjectDetection": ("LwDetrConfig", "iou_aware_bce_loss"),
    "RfDetrForObjectDetection": ("RfDetrConfig", "iou_aware_bce_loss"),
    "RfDetrForInstanceSegmentation": ("RfDetrConfig", "iou_aware_bce_loss, sigmoid_focal_loss"),
}
MASKS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "MaskFormer, masks": lambda x, t: modeling_maskformer.sigmoid_focal_loss(x, t, 3),
    "Mask2Former, masks": lambda x, t: modeling_mask2former.sigmoid_cross_entropy_loss(x, t, torch.tensor(3.0)),
}


def configuration(name: str) -> Any:
    config = getattr(transformers, name)()
    for key, value in {
        "num_labels": CLASSES - (name == "DetrConfig"),
        "auxiliary_loss": name not in ("DFineConfig", "Deimv2Config"),
        "group_detr": 1,
        "two_stage": False,
        "use_dense_one_to_one": False,
    }.items():
        setattr(config, key, value)
    return config


def dtype_of(entry: str) -> torch.dtype:
    return torch.float32 if entry in IN_FLOAT32 else torch.float64


def arguments(entry: str) -> tuple[dict[str, Any], list[Tensor]]:
    """What a model gives its loss, and the logits among it."""
    rng, dtype = torch.Generator().manual_seed(5), dtype_of(entry)

    def leaf(*shape: int) -> Tensor:
        return (torch.randn(*shape, generator=rng, dtype=dtype) * 2).requires_grad_()

    def boxes(*shape: int) -> Tensor:
        return (
            torch.rand(*shape, 2, generator=rng, dtype=dtype)
            .repeat_interleave(2, -1)
            .mul(0.4)
            .add(torch.tensor([0.3, 0.3, 0.2, 0.2]))
        )

    given: dict[str, Any] = {
        "logits": leaf(IMAGES, QUERIES, CLASSES),
        "pred_boxes": boxes(IMAGES, QUERIES),
        "outputs_class": leaf(IMAGES, LAYERS, QUERIES, CLASSES),
        "outputs_coord": boxes(IMAGES, LAYERS, QUERIES),
        "pred_masks": leaf(IMAGES, QUERIES, SIDE, SIDE),
        "outputs_masks": leaf(IMAGES, LAYERS, QUERIES, SIDE, SIDE),
    }
    for prefix in ("enc_topk_{}", "enc_outputs_{}"):
        given |= {
            prefix.format("logits"): leaf(IMAGES, QUERIES, CLASSES),
            prefix.format("class"): leaf(IMAGES, QUERIES, CLASSES),
            prefix.format("bboxes"): boxes(IMAGES, QUERIES),
        }
        given |= {
            prefix.format("coord"): boxes(IMAGES, QUERIES),
            prefix.format("masks"): leaf(IMAGES, QUERIES, SIDE, SIDE),
        }
    counts = (3, 1)
    labels = [
        {
            "class_labels": torch.randint(0, CLASSES, (n,), generator=rng),
            "boxes": boxes(n),
            "masks": torch.rand(n, SIDE, SIDE, generator=rng) > 0.6,
        }
        for n in counts
    ]
    # classes are tokens: two for the class 1, none for the last column, which is padding of the first image
    if "GroundingDino" in entry:
        maps = torch.eye(CLASSES - 1, CLASSES)
        maps[1, 2] = 1
        mask = torch.ones(IMAGES, QUERIES, CLASSES, dtype=torch.bool)
        mask[0, :, -1] = False
        given |= {"label_maps": (maps, maps), "text_mask": mask}
    if entry in ("ForSegmentation",) or "GroundingDino" in entry:  # the last column is no object, or padding
        labels = [{**label, "class_labels": label["class_labels"].clamp(max=CLASSES - 2)} for label in labels]
    given |= {"labels": labels, "device": torch.device("cpu"), "config": configuration(ENTRIES[entry][0])}
    taken = {key: value for key, value in given.items() if key in inspect.signature(LOSS_MAPPING[entry]).parameters}
    return taken, [value for value in taken.values() if isinstance(value, Tensor) and value.requires_grad]


def losses_and_gradients(entry: str) -> dict[str, Tensor]:
    torch.manual_seed(0)  # points of masks are drawn
    given, leaves = arguments(entry)
    loss, parts, _ = LOSS_MAPPING[entry](**given)
    found = {key: value.detach() for key, value in parts.items() if value.numel()}
    gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
    return (
        found
        | {"loss": loss.detach()}
        | {f"gradient {number}": grad for number, grad in enumerate(gradients) if grad is not None}
    )


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fused losses that were called."""
    seen: list[str] = []
    for name in ("sigmoid_focal_loss", "varifocal_loss", "matchability_aware_loss", "iou_aware_bce_loss"):
        fused = getattr(focal_ext.losses, name)
        monkeypatch.setattr(
            focal_ext.losses,
            name,
            lambda *args, fused=fused, name=name, **options: seen.append(name) or fused(*args, **options),
        )
    return seen


def test_every_detection_loss_of_transformers_is_here() -> None:
    wanted = {name for name in LOSS_MAPPING if "Detection" in name or "Segmentation" in name} - set(PLAIN)
    assert wanted | {"ForSegmentation"} == set(ENTRIES)


@pytest.mark.parametrize("entry", ENTRIES)
def test_losses_and_gradients_are_transformers(entry: str, calls: list[str], assert_close: Callable[..., None]) -> None:
    theirs = losses_and_gradients(entry)
    with compat.transformers.patched():
        ours = losses_and_gradients(entry)
    assert ", ".join(sorted(set(calls))) == ENTRIES[entry][1]
    assert ours.keys() == theirs.keys() and any(key.startswith("gradient") for key in theirs)
    for name in theirs:
        assert_close(f"transformers {entry}", ours[name], theirs[name], TOLERANCE[dtype_of(entry)])


@pytest.mark.parametrize("name", MASKS)
def test_the_losses_of_masks_are_transformers(name: str, calls: list[str], assert_close: Callable[..., None]) -> None:
    rng = torch.Generator().manual_seed(6)
    x = torch.randn(3, 50, generator=rng, dtype=torch.float64).requires_grad_()
    target = torch.randint(0, 2, (3, 50), generator=rng).double()
    found = []
    for patched in (False, True):
        with compat.transformers.patched() if patched else torch.enable_grad():
            value = MASKS[name](x, target)
        found.append((value.detach(), torch.autograd.grad(value, x)[0]))
    assert calls == ["sigmoid_focal_loss"]
    for theirs, ours in zip(*found, strict=True):
        assert_close(f"transformers {name}", ours, theirs, TOLERANCE[x.dtype])


def test_the_page_has_the_table_of_these() -> None:
    rows = [(name, losses) for name, (_, losses) in ENTRIES.items()] + [(name, "sigmoid_focal_loss") for name in MASKS]
    table = "| loss of transformers | computed by |\n|---|---|\n" + "".join(
        f"| {name} | {', '.join(f'`{loss}`' for loss in losses.split(', '))} |\n" for name, losses in rows
    )
    assert table in sections()["transformers and DETR"], f"docs/integrations.md has another table than this:\n{table}"

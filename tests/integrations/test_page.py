# Owns: the snippets of docs/integrations.md, run beside the installed libraries.
# Must not know: formulas.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import focal_ext
import peers
import pytest
import test_effdet
import test_torchvision_detectors
import test_transformers_training as training
import torch
from recipes import imports, run, snippets
from torch import Tensor
from torchvision.models.detection import FCOS, RetinaNet


@pytest.mark.parametrize("section", ["torchvision: RetinaNet and FCOS", "fvcore", "MONAI"])
def test_the_old_import_is_the_librarys_and_the_new_one_has_its_names(section: str) -> None:
    old, new = (run(imports(section, sign)) for sign in "-+")
    assert old.keys() == new.keys() and all("focal_ext" not in str(value.__module__) for value in old.values())


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry per call of the fused loss."""
    seen, fused = [], focal_ext.losses.sigmoid_focal_loss
    monkeypatch.setattr(
        focal_ext.losses, "sigmoid_focal_loss", lambda *args, **options: seen.append(1) or fused(*args, **options)
    )
    return seen


@pytest.mark.parametrize("kind, snippet, count", [(RetinaNet, 0, 1), (FCOS, 0, 1), (RetinaNet, 2, 3), (FCOS, 2, 1)])
def test_torchvisions_models_take_the_fused_loss(
    kind: type, snippet: int, count: int, calls: list[int], assert_close: Callable[..., None]
) -> None:
    images, targets = test_torchvision_detectors.batch(0)
    theirs = test_torchvision_detectors.model(kind)(images, targets)
    names = {
        "model": test_torchvision_detectors.model(kind),
        "images": images,
        "targets": targets,
        "focal_ext": focal_ext,
        "torch": torch,
    }
    page = snippets("torchvision: RetinaNet and FCOS")
    losses = run(page[snippet], **names).get("losses") or names["model"](images, targets)
    assert len(calls) == count
    in_validation = run(page[1], **names)["losses"]
    for name in theirs:
        assert_close("page, torchvision", losses[name], theirs[name], test_torchvision_detectors.TOLERANCE)
        assert_close("page, torchvision", in_validation[name], theirs[name], test_torchvision_detectors.TOLERANCE)


def test_effdets_detector_takes_the_fused_loss(assert_close: Callable[..., None]) -> None:
    images, targets = test_effdet.batch(0)
    found = run(snippets("effdet and timm")[0], bench=test_effdet.bench(0.1), images=images, targets=targets)
    assert_close(
        "page, effdet", found["losses"]["loss"], test_effdet.bench(0.1)(images, targets)["loss"], test_effdet.TOLERANCE
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_class_ids_without_one_hot_and_mask_give_effdets_class_loss(
    smoothing: float, assert_close: Callable[..., None]
) -> None:
    rng, classes, sides = torch.Generator().manual_seed(4), 4, (16, 8, 4, 2, 1)
    outputs = [torch.randn(2, 3 * classes, s, s, generator=rng) for s in sides]
    ids = [torch.randint(-2, classes, (2, s, s, 3), generator=rng) for s in sides]
    positives = torch.tensor([7.0, 12.0])
    boxes, box_targets = [torch.zeros(2, 12, s, s) for s in sides], [torch.zeros(2, s, s, 12) for s in sides]
    _, theirs, _ = peers.effdet.loss_fn(
        outputs, boxes, ids, box_targets, positives, classes, 0.25, 1.5, 0.1, 50.0, smoothing
    )
    names: dict[str, Any] = {
        "cls_outputs": outputs,
        "cls_targets": ids,
        "num_classes": classes,
        "num_positives": positives,
    }
    found = run(
        snippets("effdet and timm")[1], focal_ext=focal_ext, **names, alpha=0.25, gamma=1.5, label_smoothing=smoothing
    )
    assert_close("effdet by class ids", found["class_loss"], theirs, 1e-6)


def test_timms_asymmetric_loss_of_its_defaults(assert_close: Callable[..., None]) -> None:
    """The tolerance is test_losses.py's."""
    logits, targets = torch.randn(16, 9), (torch.rand(16, 9) < 0.2).float()
    found = run(snippets("effdet and timm")[2], focal_ext=focal_ext, logits=logits, targets=targets)
    assert_close("page, timm", found["loss"], peers.timm.AsymmetricLossMultiLabel()(logits, targets), 4e-6)


def test_transformers_model_takes_the_fused_loss(calls: list[int], assert_close: Callable[..., None]) -> None:
    row = training.ROWS[0]
    with training.default(row.dtype):
        model, batch = training.model(row), training.batch(row, 0)
        found = run(snippets("transformers and DETR")[1], focal_ext=focal_ext, model=model, **batch)
        theirs: Tensor = training.model(row)(**batch).loss
    assert len(calls) == 2
    run(snippets("transformers and DETR")[0])
    assert (
        "transformers.loss.loss_deformable_detr.DeformableDetrImageLoss.loss_labels"
        in focal_ext.compat.transformers.restore()
    )
    assert_close("page, transformers", found["output"].loss, theirs, training.TOLERANCE[row.dtype])

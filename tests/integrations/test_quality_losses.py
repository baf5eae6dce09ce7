# Owns: losses weighed by quality beside the original implementations of transformers: values and gradients, in float64
# and in float32.
# Must not know: formulas.
from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import focal_ext
import pytest
import torch
from torch import Tensor

IMAGES, QUERIES, CLASSES, BOXES = 3, 30, 7, 11.0
rng = torch.Generator().manual_seed(5)


def boxes(*shape: int) -> Tensor:
    """Center, width and height; wide enough that most pairs of boxes meet, and some do not."""
    return torch.cat(
        [
            torch.rand(*shape, 2, generator=rng, dtype=torch.float64) * 0.5 + 0.25,
            torch.rand(*shape, 2, generator=rng, dtype=torch.float64) * 0.5 + 0.05,
        ],
        -1,
    )


LOGITS = torch.randn(IMAGES, QUERIES, CLASSES, generator=rng, dtype=torch.float64) * 4
PREDICTED = boxes(IMAGES, QUERIES)
TARGETS = [{"class_labels": torch.randint(0, CLASSES, (n,), generator=rng), "boxes": boxes(n)} for n in (5, 0, 8)]
MATCHES = [
    (torch.randperm(QUERIES, generator=rng)[: len(t["boxes"])], torch.randperm(len(t["boxes"]), generator=rng))
    for t in TARGETS
]


class Row(NamedTuple):
    module: str
    original: str  # class and method
    options: dict[str, Any]
    ours: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]


ROWS = {
    "RT-DETR": Row(
        "loss_rt_detr",
        "RTDetrLoss.loss_labels_vfl",
        {"alpha": 0.75, "gamma": 2.0},
        lambda x, pair: focal_ext.varifocal_loss(x, pair, 0.75, 2.0, "sum", normalizer=BOXES, modulator_gradient=False),
    ),
    "DEIMv2": Row(
        "loss_deimv2",
        "Deimv2Loss.loss_labels_mal",
        {"mal_alpha": None, "gamma": 1.5},
        lambda x, pair: focal_ext.matchability_aware_loss(x, pair, reduction="sum", normalizer=BOXES),
    ),
    "DEIMv2 with alpha": Row(
        "loss_deimv2",
        "Deimv2Loss.loss_labels_mal",
        {"mal_alpha": 0.3, "gamma": 2.0},
        lambda x, pair: focal_ext.matchability_aware_loss(x, pair, 2.0, 0.3, "sum", normalizer=BOXES),
    ),
    "LW-DETR": Row(
        "loss_lw_detr",
        "LwDetrImageLoss.loss_labels",
        {"focal_alpha": 0.25},
        lambda x, pair: focal_ext.iou_aware_bce_loss(x, pair, reduction="sum", normalizer=BOXES),
    ),
}


def originals(row: Row, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Its loss, and what it made of the matches: class ids and qualities."""
    module = pytest.importorskip(f"transformers.loss.{row.module}")
    owner, method = row.original.split(".")
    original = getattr(module, owner)
    self = SimpleNamespace(
        num_classes=CLASSES,
        _get_source_permutation_idx=lambda indices: original._get_source_permutation_idx(None, indices),
        **row.options,
    )
    targets = [{"class_labels": t["class_labels"], "boxes": t["boxes"].to(dtype)} for t in TARGETS]
    outputs = {"logits": x, "pred_boxes": PREDICTED.to(dtype)}
    (loss,) = getattr(original, method)(self, outputs, targets, MATCHES, BOXES).values()
    image_transforms = importlib.import_module("transformers.image_transforms")
    ids, scores = torch.full((IMAGES, QUERIES), -1), torch.zeros(IMAGES, QUERIES, dtype=dtype)
    for i, (queries, matched) in enumerate(MATCHES):
        corners = (
            image_transforms.center_to_corners_format(b)
            for b in (PREDICTED[i, queries].to(dtype), targets[i]["boxes"][matched])
        )
        ids[i, queries], scores[i, queries] = (
            targets[i]["class_labels"][matched],
            module.box_iou(*corners)[0].diag().to(dtype),
        )
    return loss, (ids, scores)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("who", ROWS)
def test_the_loss_is_the_detectors_own(who: str, dtype: torch.dtype) -> None:
    row, x = ROWS[who], LOGITS.to(dtype).detach().clone().requires_grad_()
    # In float64 either way: LW-DETR's log(1 - p) has lost float32's digits itself.
    exact = x.detach().double().requires_grad_()
    theirs, (ids, scores) = originals(row, exact, torch.float64)
    pair = (ids, scores.to(dtype))
    assert int((pair[1] == 0).sum()) > QUERIES and (pair[1] > 0.3).any()
    ours = row.ours(x, pair)
    value, gradient = (1e-12, 1e-12) if dtype == torch.float64 else (1e-6, 1e-5)  # relative; of the largest gradient
    assert abs(float(ours.detach() - theirs.detach())) <= value * float(theirs.detach())
    mine, other = torch.autograd.grad(ours, x)[0], torch.autograd.grad(theirs, exact)[0]
    assert float((mine - other).abs().max()) <= gradient * float(other.abs().max())


def test_a_matched_query_without_overlap_is_a_positive_that_counts_nothing_in_rt_detr() -> None:
    _, (ids, scores) = originals(ROWS["RT-DETR"], LOGITS, torch.float64)
    where = ids >= 0
    x = LOGITS.detach().clone().requires_grad_()
    focal_ext.varifocal_loss(x, (ids, torch.zeros_like(scores)), reduction="sum", modulator_gradient=False).backward()
    assert not x.grad[where, ids[where]].any() and x.grad.any()

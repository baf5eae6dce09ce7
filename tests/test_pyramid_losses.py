# Owns: every loss over the levels of a pyramid: the numbers and gradients of the function over rows, pairs, lists, what
# has no kernel.
# Must not know: the sigmoid focal loss's own table (test_pyramid.py), errors that all losses share
# (test_pyramid_errors.py).
from __future__ import annotations

from typing import Any

import focal_ext
import pytest
import torch
from family import SCORED
from pyramids import LAYOUTS, Shape, labels, leaves, maps, rows
from test_autograd import Ops
from torch import Tensor

SHAPE = Shape(images=3, anchors=2, classes=5, sizes=((7, 5), (3, 4), (1, 2)))
IDS = labels(SHAPE)
SCORES = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(0))
WEIGHTS = {
    "": None,
    "of images": torch.tensor([[0.5], [2.0], [0.0]]),
    "of anchors": torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)),
}
LOSSES = [name for name in focal_ext.pyramid.__all__ if name.endswith("_loss")]


def given(loss: str, shape: Shape = SHAPE) -> tuple[Any, Any]:
    """Targets over levels, and over rows; softmax knows no background."""
    if loss in SCORED:
        return (IDS, SCORES), (IDS, SCORES)
    ids = IDS.clamp(min=0, max=shape.classes - 1) if loss == "softmax_focal_loss" else IDS
    return ids, ids


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("loss", LOSSES)
def test_levels_give_the_numbers_and_gradients_of_their_rows(
    loss: str, layout: str, dtype: torch.dtype, reduction: str, weight: str
) -> None:
    levels, (targets, of_rows), factor = leaves(maps(SHAPE, layout, dtype)), given(loss), WEIGHTS[weight]
    got = getattr(focal_ext.pyramid, loss)(levels, targets, SHAPE.classes, reduction=reduction, weight=factor)
    wide = [level.detach().double().requires_grad_() for level in levels]
    column = None if factor is None else factor.expand(IDS.shape) if loss == "softmax_focal_loss" else factor[..., None]
    want = getattr(focal_ext.reference, loss)(rows(wide, SHAPE.classes), of_rows, reduction=reduction, weight=column)
    assert torch.allclose(got.double(), want, rtol=1e-5 if dtype != torch.float64 else 1e-12)
    unit = torch.finfo(dtype).eps
    for gradient, exact in zip(torch.autograd.grad(got * 3, levels), torch.autograd.grad(want * 3, wide)):
        # A unit of the logits' type for each of the two roundings, of the gradient and of its product with 3; float32's
        # own error beside it.
        assert torch.allclose(
            gradient.double(), exact, rtol=max(2 * unit, 2e-5 if dtype != torch.float64 else 1e-11), atol=1e-7
        )


@pytest.mark.parametrize("loss", LOSSES)
def test_the_reference_has_the_same_function(loss: str) -> None:
    levels, targets = maps(SHAPE, "mixed", torch.float64), given(loss)[0]
    ours, theirs = (
        getattr(module, loss)(levels, targets, SHAPE.classes)
        for module in (focal_ext.pyramid, focal_ext.reference.pyramid)
    )
    assert torch.allclose(ours, theirs, rtol=1e-12)


@pytest.mark.native
@pytest.mark.parametrize("loss", LOSSES)
def test_levels_are_read_where_they_are(loss: str) -> None:
    levels = leaves(maps(SHAPE, "mixed"))
    with Ops() as seen:
        getattr(focal_ext.pyramid, loss)(levels, given(loss)[0], SHAPE.classes).backward()
    assert "focal_ext.pyramid_loss_and_gradient" in seen.names and not any(
        "copy" in name or "cat" in name or "clone" in name for name in seen.names
    )


@pytest.mark.parametrize("loss", SCORED)
def test_pairs_may_be_lists_of_levels_and_are_asked_for(loss: str) -> None:
    levels, function = maps(SHAPE), getattr(focal_ext.pyramid, loss)
    parts = tuple(list(t.split(SHAPE.counts, dim=1)) for t in (IDS, SCORES))
    assert torch.equal(function(levels, parts, SHAPE.classes), function(levels, (IDS, SCORES), SHAPE.classes))
    wrong: list[tuple[Any, type[Exception], str]] = [
        (IDS, TypeError, r"targets: must be a pair \(ids, scores\).*Tensor"),
        ((IDS, IDS), TypeError, "scores of a pair.*floating point.*int64"),
        ((IDS, SCORES[:, 1:]), ValueError, r"targets: scores must have shape"),
        ((IDS.masked_fill(IDS == 1, 93), SCORES), ValueError, "class id 93 at anchor"),
    ]
    for targets, exception, sentence in wrong:
        with pytest.raises(exception, match=sentence):
            function(levels, targets, SHAPE.classes)


@pytest.mark.parametrize("loss", LOSSES)
def test_compiled_once_differentiable_and_second_order_by_the_reference(loss: str) -> None:
    levels, targets = leaves(maps(SHAPE, "mixed", torch.float64)), given(loss)[0]
    function = getattr(focal_ext.pyramid, loss)

    def of(*levels: Tensor) -> Tensor:
        result: Tensor = function(list(levels), targets, SHAPE.classes)
        return result

    torch._dynamo.reset()
    compiled = torch.compile(of, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*levels), levels), torch.autograd.grad(of(*levels), levels)):
        assert torch.allclose(a, b, rtol=1e-12)
    (first,) = torch.autograd.grad(of(*levels), levels[2], create_graph=True)
    assert torch.autograd.grad(first.square().sum(), levels[2])[0].isfinite().all()

# Owns: dense targets over the levels of a pyramid: every loss against its rows in float64, what is copied, counts over
# all levels, errors; levels in a dict; every loss over levels as a module.
# Must not know: class ids over levels (test_pyramid_losses.py), dense targets over rows (test_values.py,
# test_ignored_dense.py).
from __future__ import annotations

import copy
import inspect
import pickle
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import focal_ext
import pytest
import torch
from pairwise import pairwise
from pyramids import LAYOUTS, Shape, labels, leaves, maps, rows
from test_autograd import Ops
from torch import Tensor

SHAPE = Shape(images=3, anchors=2, classes=5, sizes=((7, 5), (3, 4), (1, 2), (0, 3)))
LOSSES = [name for name in focal_ext.pyramid.__all__ if name.endswith("_loss")]
SCORED = [name for name in focal_ext.reference.__all__ if getattr(focal_ext, name).spec.needs_scores]
PER_ROW = ("softmax_focal_loss",)
CLASS_ALPHA = ("sigmoid_focal_loss", "softmax_focal_loss")
WEIGHTS = {
    None: None,
    "images": torch.tensor([[0.5], [2.0], [0.0]]),
    "anchors": torch.rand(3, sum(SHAPE.counts), generator=torch.Generator().manual_seed(1)),
}
ALPHA = [0.1, 0.2, 0.3, 0.4, 0.5]


def dense_maps(loss: str, kind: str, layout: str, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Values of the kind in the layout of the levels, or in planes."""
    rng, targets, none = (
        torch.Generator().manual_seed(3),
        maps(SHAPE, layout, torch.float32),
        -100.0 if loss in PER_ROW else -2.0,
    )
    for target in targets:
        draw = torch.rand(target.shape, generator=rng)
        target.copy_(
            torch.where(draw < 0.2, torch.rand(target.shape, generator=rng), 0.0)
            if "float" in kind
            else (draw < 0.2).float()
        )
        if kind == "float with ignored":
            target.masked_fill_(torch.rand(target.shape, generator=rng) < 0.05, none)
    as_kind = {"bool": torch.bool, "int64": torch.int64, "uint8": torch.uint8}
    return [target.to(as_kind.get(kind, dtype)) for target in targets]


def is_possible(row: dict[str, Any]) -> bool:
    return (row["normalizer"] is None or row["reduction"] == "sum") and (not row["alpha"] or row["loss"] in CLASS_ALPHA)


@pairwise(
    is_possible,
    loss=LOSSES,
    layout=LAYOUTS,
    kind=("float", "float with ignored", "bool", "int64", "uint8"),
    dtype=(torch.float32, torch.bfloat16, torch.float16, torch.float64),
    reduction=("sum", "mean"),
    normalizer=(None, 3.0, "tensor"),
    weight=WEIGHTS,
    alpha=(False, True),
    batch_dims=(0, 1),
    route=("fused", "reference", "compiled"),
)
def test_dense_maps_give_the_numbers_and_gradients_of_their_rows(
    loss: str,
    layout: str,
    kind: str,
    dtype: torch.dtype,
    reduction: str,
    normalizer: Any,
    weight: str | None,
    alpha: bool,
    batch_dims: int,
    route: str,
) -> None:
    levels, targets, factor = leaves(maps(SHAPE, layout, dtype)), dense_maps(loss, kind, layout, dtype), WEIGHTS[weight]
    divisor = torch.tensor(7.5) if normalizer == "tensor" else normalizer
    function = getattr(focal_ext.reference.pyramid if route == "reference" else focal_ext.pyramid, loss)
    if route == "compiled":
        torch._dynamo.reset()
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    options = {"alpha": ALPHA} if alpha else {}
    got = function(
        levels, targets, 5, reduction=reduction, normalizer=divisor, weight=factor, batch_dims=batch_dims, **options
    )

    wide, of_rows = (
        [level.detach().double().requires_grad_() for level in levels],
        rows([target.double() if target.is_floating_point() else target for target in targets], 5),
    )
    column = (
        None
        if factor is None
        else factor.expand(of_rows.shape[:-1])
        if loss in PER_ROW
        else factor[..., None].expand(of_rows.shape)
    )
    given = (rows(wide, 5), of_rows)
    divided = divisor.double() if isinstance(divisor, Tensor) else divisor
    calls = [slice(i, i + 1) for i in range(3)] if batch_dims else [slice(None)]
    each = [
        getattr(focal_ext.reference, loss)(
            *(t[i] for t in given),
            reduction=reduction,
            normalizer=divided,
            weight=None if column is None else column[i],
            **options,
        )
        for i in calls
    ]
    want = torch.stack(each) if batch_dims else each[0]
    assert got.shape == want.shape and torch.allclose(got.double(), want, rtol=1e-5, atol=1e-7)
    upstream, unit = torch.arange(1, 4) * 0.5 if batch_dims else torch.tensor(3.0), torch.finfo(dtype).eps
    for level, gradient, exact in zip(
        levels,
        torch.autograd.grad(got, levels, upstream.to(got.dtype)),
        torch.autograd.grad(want, wide, upstream.double()),
    ):
        assert gradient.shape == level.shape and torch.allclose(
            gradient.double(), exact, rtol=max(2 * unit, 3e-5), atol=1e-7
        )


@pytest.mark.native
@pytest.mark.parametrize("loss", [name for name in LOSSES if name not in PER_ROW])
def test_maps_in_the_order_of_their_levels_are_read_in_place_and_gradients_keep_it(loss: str) -> None:
    levels, targets = leaves(maps(SHAPE, "mixed")), dense_maps(loss, "float", "mixed")
    with Ops() as seen:
        getattr(focal_ext.pyramid, loss)(levels, targets, 5).backward()
    assert seen.names.count("focal_ext.loss_and_gradient") == len(levels) and not any(
        copied in name for name in seen.names for copied in ("copy", "clone", "cat")
    )
    assert all(level.grad.stride() == level.stride() for level in levels if level.numel())


def test_twice_differentiable_overwritten_and_the_same_again() -> None:
    levels, targets = (
        leaves(maps(SHAPE, "mixed", torch.float64)),
        dense_maps("sigmoid_focal_loss", "float", "mixed", torch.float64),
    )
    loss = focal_ext.pyramid.sigmoid_focal_loss(levels, targets, 5)
    (first,) = torch.autograd.grad(loss, levels[1], create_graph=True)
    assert torch.autograd.grad(first.square().sum(), levels[1])[0].isfinite().all()
    again = focal_ext.pyramid.sigmoid_focal_loss([level * 1 for level in levels], targets, 5, overwrite_inputs=True)
    assert torch.equal(loss, again) and all(
        torch.equal(*pair) for pair in zip(torch.autograd.grad(again, levels), torch.autograd.grad(loss, levels))
    )


def wrong_calls() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    targets = dense_maps("sigmoid_focal_loss", "float", "contiguous")
    yield {"targets": targets[:2]}, ValueError, "targets: must hold a dense map for each of the 4 levels, got 2"
    yield (
        {"targets": [targets[0][..., :3], *targets[1:]]},
        ValueError,
        r"targets\[0\]: dense maps must have the shape of levels\[0\], \(3, 10, 7, 5\), got \(3, 10, 7, 3\)",
    )
    yield (
        {"targets": [targets[0], 3, *targets[2:]]},
        TypeError,
        r"targets\[1\]: must be a torch.Tensor, a dense map as the other levels have, got int",
    )
    yield (
        {"targets": [targets[0].bool(), *targets[1:]]},
        TypeError,
        "targets: all levels must have one dtype, got torch.bool and torch.float32",
    )
    yield (
        {"targets": [t.long() + (7 if i == 1 else 0) for i, t in enumerate(targets)]},
        ValueError,
        r"targets\[1\]: dense integers must be 0 or 1.*got 7 at \(0, 0, 0, 0\)",
    )
    yield {"reduction": "none"}, ValueError, "reduction: must be 'sum' or 'mean' for a pyramid, got 'none'"
    yield {"normalizer": "positives"}, ValueError, "normalizer: 'positives' counts class ids, got dense targets"
    yield {"normalizer": 2.0, "reduction": "mean"}, ValueError, "normalizer: goes with reduction='sum'"
    yield {"weight": torch.ones(3)}, ValueError, r"weight: must have shape \(3, 1\)"
    yield {"class_dim": 1}, ValueError, "class_dim: levels have their classes in dimension 1"
    yield {"batch_dims": 2}, ValueError, "batch_dims: must be 0 or 1 for a pyramid"
    yield {"gama": 2.0}, TypeError, "gama"


@pytest.mark.parametrize("module", [focal_ext.pyramid, focal_ext.reference.pyramid], ids=["fused", "reference"])
@pytest.mark.parametrize("changed, exception, sentence", wrong_calls())
def test_a_wrong_argument_is_named(
    changed: dict[str, Any], exception: type[Exception], sentence: str, module: Any
) -> None:
    with pytest.raises(exception, match=sentence):
        module.sigmoid_focal_loss(
            **{
                "levels": maps(SHAPE),
                "targets": dense_maps("sigmoid_focal_loss", "float", "contiguous"),
                "num_classes": 5,
                **changed,
            }
        )


def targets_of(loss: str) -> Any:
    ids = labels(SHAPE).clamp(min=0, max=SHAPE.classes - 1) if loss in PER_ROW else labels(SHAPE)
    return (ids, torch.full(ids.shape, 0.7)) if loss in SCORED else ids


@pytest.mark.parametrize("loss", LOSSES)
def test_levels_may_be_a_dict_as_an_fpn_returns_it(loss: str) -> None:
    levels, function, targets = maps(SHAPE), getattr(focal_ext.pyramid, loss), targets_of(loss)
    named, dense = OrderedDict(zip("0123", levels)), dense_maps(loss, "bool", "contiguous")
    want, of_dense = function(levels, targets, 5), function(levels, dense, 5)
    for given in (named, dict(named), named.values(), dict(named).values(), tuple(levels)):
        assert torch.equal(function(given, targets, 5), want) and torch.equal(function(given, dense, 5), of_dense)
    by_name = dict(zip("0123", dense))
    assert torch.equal(function(named, by_name, 5), of_dense)
    assert torch.equal(function(named, dict(reversed(by_name.items())), 5), of_dense)
    for given in (levels, dict(zip("0124", levels))):
        with pytest.raises(ValueError, match="^targets: a dict must have the keys of levels, .*give a list"):
            function(given, by_name, 5)
    torch._dynamo.reset()  # losses share code, whose compilations are counted together
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(named, targets, 5), want)


def test_features_of_a_fused_head_may_be_a_dict() -> None:
    head, features = focal_ext.FusedFocalHead(3, 2, 5), {name: torch.randn(2, 3, 4, 4) for name in "ab"}
    ids = torch.zeros(2, 64, dtype=torch.int64)
    assert len(head(features)) == 2 and torch.equal(head(features, ids), head(list(features.values()), ids))


@pytest.mark.parametrize("loss", LOSSES)
def test_each_is_a_module_with_the_function_s_arguments_and_defaults(loss: str) -> None:
    function = getattr(focal_ext.pyramid, loss)
    module = getattr(focal_ext.pyramid, "".join(part.capitalize() for part in loss.split("_")))
    own, theirs = inspect.signature(module).parameters, list(inspect.signature(function).parameters.values())[2:]
    assert [(p.name, p.default, p.kind) for p in own.values()] == [(p.name, p.default, p.kind) for p in theirs]
    levels, targets, weight = maps(SHAPE), targets_of(loss), WEIGHTS["images"]
    made = module(5, normalizer=torch.tensor(2.0), batch_dims=1)
    want = function(levels, targets, 5, normalizer=torch.tensor(2.0), batch_dims=1)
    for each in (made, copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(each) is module and torch.equal(each(levels=levels, targets=targets), want)
    assert torch.equal(
        made(levels, targets, weight),
        function(levels, targets, 5, normalizer=torch.tensor(2.0), weight=weight, batch_dims=1),
    )
    assert "num_classes=5" in repr(made) and module.__module__ == "focal_ext.pyramid"
    for wrong, exception, word in (
        ((0,), ValueError, "num_classes"),
        (("a",), TypeError, "num_classes"),
        ((5, -0.5), ValueError, "must be"),
    ):
        with pytest.raises(exception, match=word):
            module(*wrong)

# Owns: the pyramid op's numbers: against permute + cat + the loss over rows to the bit, and against the reference in
# float64.
# Must not know: autograd's rules, compiled graphs, errors (test_pyramid_autograd.py, test_pyramid_errors.py).
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import focal_ext
import pytest
import torch
from cases import GAMMAS, ID_DTYPES, PUBLIC
from pyramids import DTYPES, LAYOUTS, SHAPES, Shape, channels_last, labels, leaves, maps, rows
from rounding import outside
from tolerances import EXPONENT, SUBNORMAL, units
from torch import Tensor

pyramid_loss, rows_loss = focal_ext.pyramid.sigmoid_focal_loss, focal_ext.sigmoid_focal_loss
EVERYDAY = SHAPES["everyday"]


def per_class(shape: Shape) -> Tensor:
    return torch.linspace(0.05, 0.95, shape.classes)


OPTIONS: dict[str, dict[str, Any]] = {
    "plain sum": {},
    "mean": {"reduction": "mean"},
    "positives": {"normalizer": "positives"},
    "float normalizer": {"normalizer": 7.3},
    "tensor normalizer": {"normalizer": torch.tensor(7.3)},
    "alpha off": {"alpha": None},
    "alpha 0": {"alpha": 0.0},
    "alpha list": {"alpha": per_class(EVERYDAY).tolist()},
    "alpha tensor": {"alpha": per_class(EVERYDAY)},
    "weight of images": {"weight": torch.tensor([[0.5], [3.0]])},
    "weight of anchors": {
        "weight": torch.rand(2, sum(EVERYDAY.counts), generator=torch.Generator().manual_seed(5)) * 2
    },
    "weight in float64": {"weight": torch.tensor([[0.25], [2.0]]).double()},
    "weight strided": {"weight": torch.tensor([[0.5, 1.0], [3.0, 1.0]])[:, ::2]},
    "weight 0": {"weight": torch.tensor([[0.0], [1.0]]), "reduction": "mean"},
    "smoothing": {"label_smoothing": 0.1},
    "smoothing 1, mean, gamma 0": {"label_smoothing": 1.0, "reduction": "mean", "gamma": 0.0},
    "everything": {
        "alpha": per_class(EVERYDAY),
        "gamma": 1.7,
        "normalizer": "positives",
        "weight": torch.tensor([[0.5], [3.0]]),
        "label_smoothing": 0.05,
    },
    "ignore -1": {"ignore_index": -1, "targets": lambda ids: ids.clamp(min=-1)},
    "ignore 255": {"ignore_index": 255, "targets": lambda ids: torch.where(ids == -2, 255, ids)},
    "ignore nothing": {"ignore_index": None, "targets": lambda ids: ids.clamp(min=-1)},
    "ignore all": {"targets": lambda ids: torch.full_like(ids, -2), "normalizer": "positives"},
    "ignore all, mean": {"targets": lambda ids: torch.full_like(ids, -2), "reduction": "mean"},
    "no positive": {"targets": lambda ids: torch.full_like(ids, -1), "normalizer": "positives"},
    "all positive": {"targets": lambda ids: ids.clamp(0, EVERYDAY.classes - 1)},
    **{f"gamma {gamma}": {"gamma": gamma} for gamma in GAMMAS},
}


def rows_options(options: dict[str, Any]) -> dict[str, Any]:
    weight = options.get("weight")
    return {"reduction": "sum", **options, **({} if weight is None else {"weight": weight[..., None]})}


def both(
    levels: Sequence[Tensor], ids: Tensor, classes: int, factor: float = 1.0, **options: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """(loss, gradient of each level) of the pyramid op, and of permute + cat + the loss over rows."""
    ours, theirs = leaves(levels), leaves(levels)
    loss, plain = (
        pyramid_loss(ours, ids, classes, **options),
        rows_loss(rows(theirs, classes), ids, **rows_options(options)),
    )
    assert loss.dtype == plain.dtype and loss.shape == ()
    return [loss, *torch.autograd.grad(factor * loss, ours)], [plain, *torch.autograd.grad(factor * plain, theirs)]


def exact(levels: Sequence[Tensor], ids: Tensor, classes: int, **options: Any) -> list[Tensor]:
    """The reference over rows in float64, of what the float32 arithmetic gets to see."""
    wide = leaves([level.double() for level in levels])

    def widen(value: Any) -> Any:
        value = torch.tensor(value) if isinstance(value, list) else value
        return value.double() if isinstance(value, Tensor) else value

    loss = focal_ext.reference.sigmoid_focal_loss(
        rows(wide, classes), ids, **rows_options({name: widen(value) for name, value in options.items()})
    )
    return [loss.detach(), *torch.autograd.grad(loss, wide)]


def folds_weights(ids: Tensor, weight: Tensor | None = None, alpha: Any = 0.25, **_: Any) -> bool:
    """Whether each image has one weight, which one number alpha is multiplied by before the gradients are: a rounding
    or two less."""
    return weight is not None and weight.shape != ids.shape and not isinstance(alpha, (list, Tensor))


def assert_right(levels: Sequence[Tensor], ids: Tensor, classes: int, **options: Any) -> None:
    got, plain = both(levels, ids, classes, **options)
    want, dtype = exact(levels, ids, classes, **options), levels[0].dtype
    absolute = SUBNORMAL.units * torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    assert torch.allclose(got[0].double(), want[0], rtol=units(PUBLIC.name, dtype, "sum"), atol=0)
    for level, mine, theirs, right in zip(levels, got[1:], plain[1:], want[1:]):
        assert mine.dtype == dtype and mine.shape == level.shape
        if folds_weights(ids, **options):
            assert torch.allclose(mine, theirs, rtol=2 * torch.finfo(dtype).eps, atol=absolute)
        else:
            assert torch.equal(mine, theirs)  # the share of bit-equal gradients is 1
        # where the gradient is a difference: relative to the largest then
        smoothed = options.get("label_smoothing", 0) > 0
        relative = units(PUBLIC.name, dtype, "soft" if smoothed else "hard")
        if dtype == torch.float64 and level.numel():
            relative += EXPONENT.units * torch.finfo(dtype).eps * options.get("gamma", 2.0) * float(level.abs().max())
        slack = relative * (right.abs().max() if smoothed and right.numel() else right.abs())
        assert not outside(mine, right, slack + absolute).any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_and_layout_is_permute_cat_and_the_rows_op(name: str, layout: str) -> None:
    shape = SHAPES[name]
    assert_right(maps(shape, layout), labels(shape), shape.classes, normalizer="positives")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_that_of_the_rows_op(name: str, dtype: torch.dtype, layout: str) -> None:
    options = dict(OPTIONS[name])
    ids = options.pop("targets", lambda ids: ids)(labels(EVERYDAY))
    assert_right(maps(EVERYDAY, layout, dtype), ids, EVERYDAY.classes, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [3.0, 0.5, 0.0, 1024.0])
def test_an_upstream_factor_multiplies_every_gradient(factor: float, dtype: torch.dtype) -> None:
    got, plain = both(
        maps(EVERYDAY, "mixed", dtype), labels(EVERYDAY), EVERYDAY.classes, factor, normalizer="positives"
    )
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(got[1:], plain[1:]))
    assert all(bool(gradient.any()) == (factor != 0) for gradient in got[1:])


@pytest.mark.parametrize("dtype", ID_DTYPES)
def test_ids_of_every_integer_type_in_one_tensor_or_one_for_each_level_mean_the_same(dtype: str) -> None:
    levels, ids = maps(EVERYDAY), labels(EVERYDAY).clamp(min=0)
    want = pyramid_loss(levels, ids, EVERYDAY.classes)
    narrow = ids.to(getattr(torch, dtype))
    assert torch.equal(pyramid_loss(levels, narrow, EVERYDAY.classes), want)
    split = [part.to(getattr(torch, dtype)) for part in ids.split(EVERYDAY.counts, dim=1)]
    assert torch.equal(pyramid_loss(levels, split, EVERYDAY.classes), want)
    assert torch.equal(pyramid_loss(levels, ids.t().contiguous().t(), EVERYDAY.classes), want)  # in any layout


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_and_infinite_logits_of_ignored_anchors_count_as_nothing(dtype: torch.dtype, layout: str) -> None:
    shape, ids = EVERYDAY, labels(EVERYDAY)
    levels, offset = maps(shape, "contiguous", dtype), 0
    clean = pyramid_loss(maps(shape, layout, dtype), ids, shape.classes, normalizer="positives")
    ignored = []
    for level, count in zip(levels, shape.counts):
        height, width = level.shape[2:]
        off = (
            (ids[:, offset : offset + count] == -2)
            .view(shape.images, height, width, shape.anchors, 1)
            .permute(0, 3, 4, 1, 2)
        )
        ignored.append(off.expand(-1, -1, shape.classes, -1, -1).reshape(level.shape))
        level[ignored[-1]] = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(dtype)[
            torch.arange(int(ignored[-1].sum())) % 3
        ]
        offset += count
    inputs = leaves(way(level) for level, way in zip(levels, 3 * LAYOUTS[layout]))
    loss = pyramid_loss(inputs, ids, shape.classes, normalizer="positives")
    assert torch.equal(loss, clean)
    for gradient, off in zip(torch.autograd.grad(loss, inputs), ignored):
        assert off.any() and not gradient[off].any() and gradient.isfinite().all()


def test_a_nan_logit_that_counts_makes_the_loss_nan_and_is_no_error() -> None:
    levels = maps(EVERYDAY)
    levels[1][0, 0, 0, 0] = torch.nan
    assert pyramid_loss(levels, torch.full_like(labels(EVERYDAY), -1), EVERYDAY.classes).isnan()


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("name", ["several chunks", "wide map", "80 classes"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_number_of_threads_gives_the_same_bits(dtype: torch.dtype, name: str, layout: str) -> None:
    shape = SHAPES[name]
    levels, ids, results = maps(shape, layout, dtype), labels(shape), []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        inputs = leaves(levels)
        loss = pyramid_loss(inputs, ids, shape.classes, normalizer="positives")
        results.append([loss, *torch.autograd.grad(loss, inputs)])
    assert (
        all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other)) or PUBLIC.name == "reference"
    )


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_come_back_in_the_memory_format_of_their_level(
    dtype: torch.dtype, layout: str, overwrite: bool
) -> None:
    inputs = leaves(maps(EVERYDAY, layout, dtype))
    loss = pyramid_loss([x * 1 for x in inputs], labels(EVERYDAY), EVERYDAY.classes, overwrite_inputs=overwrite)
    gradients = torch.autograd.grad(loss, inputs)
    assert [g.stride() for g in gradients] == [x.stride() for x in inputs] or PUBLIC.name == "reference"
    if layout == "channels_last":
        assert all(channels_last(x).stride() == x.stride() and not x.is_contiguous() for x in inputs)

# Owns: the pyramid op by the CUDA kernels' own source, run on a device made of a CPU, against the reference in float64.
# Must not know: formulas. How the device works is tests/cuda_host; sanitizers are tests/kernels.
from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import focal_ext
import pytest
import test_pyramid_losses
import torch
from cases import EXPONENTS, ID_DTYPES
from cuda_host import table
from cuda_host.defects import NUMBER
from cuda_host.ops import HostOps
from family import SCORED
from focal_ext import _autograd, _run
from losses import DECLARED
from pairwise import pairwise
from pyramids import SHAPES, Shape, channels_last, labels, leaves, maps
from rounding import outside
from test_cuda_host import DEFECT, FLAVOUR, LARGEST, PACKED, SEED, bits, module
from test_cuda_host import pytestmark as pytestmark
from test_pyramid import EVERYDAY, OPTIONS, exact, pyramid_loss
from tolerances import units
from torch import Tensor

# With 16 classes or less a tile of planes has them all; the first map needs several blocks of positions and the last
# ends in a part of one.
SHAPES = SHAPES | {
    "many tiles": Shape(anchors=2, classes=90, sizes=((16, 40), (8, 17), (4, 4))),
    "aligned maps": Shape(images=3, anchors=2, classes=17, sizes=((16, 40), (8, 20), (4, 8))),
    "eighteen levels": Shape(anchors=1, classes=3, sizes=((4, 6), (0, 3), *((2, 4 + i) for i in range(16)))),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # float64 is copied into rows, too
LAYOUTS = ("contiguous", "channels_last", "mixed")  # any other is copied before it comes here
ROWS = list(itertools.product(SHAPES, LAYOUTS, DTYPES))
OPTION_ROWS = list(itertools.product(OPTIONS, ("contiguous", "channels_last"), DTYPES))
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def use(monkeypatch: pytest.MonkeyPatch, grid: int, flavour: str = FLAVOUR) -> None:
    """From here to the end of the test the op calls these kernels."""
    module(flavour).set_seed(SEED)
    module(flavour).plant(NUMBER[DEFECT])
    monkeypatch.setattr(_autograd, "ops", HostOps(module(flavour), grid))


def numel(shape: Shape) -> int:
    return shape.images * sum(shape.counts) * shape.classes


def assert_right(levels: Sequence[Tensor], ids: Tensor, classes: int, grid: int, **options: Any) -> None:
    ours, want, dtype = leaves(levels), exact(levels, ids, classes, **options), levels[0].dtype
    loss = pyramid_loss(ours, ids, classes, **options)
    gamma, eps = options.get("gamma", 2.0), torch.finfo(torch.float32).eps
    kind = "narrow" if dtype != torch.float32 else "whole gamma" if gamma == 2 else "any gamma"
    smoothed = options.get("label_smoothing", 0) > 0  # its gradient is a difference: relative to the largest then
    added = table.ADDED.units * eps * (sum(level.numel() for level in levels) / (256 * grid) + 16384 / 32)
    off = outside(loss, want[0], (units(f"cuda host, {kind}", dtype, "sum") + added) * want[0].abs())
    assert not off.any(), (loss, want[0])
    for got, right in zip(torch.autograd.grad(loss, ours), want[1:]):
        relative = units(f"cuda host, {kind}", dtype, "hard")
        room = relative * (right.abs().max() if smoothed and right.numel() else right.abs())
        flushed = table.FLUSHED.units * 2.0**-126 * (1 + gamma)
        assert got.dtype == dtype and got.shape == right.shape
        assert not outside(got, right, room + flushed).any(), (got.double() - right).abs().max()


def with_grids(rows: Sequence[tuple[str, str, torch.dtype]], shape_of: Callable[[str], Shape]) -> list[Any]:
    """Rows that the flavour has time for: under a sanitizer every fifth. Grids take turns."""
    every = {"plain": 1, "packed_plain": 1, "thread": 10}.get(FLAVOUR, 5)
    return [
        (grid, row)
        for grid, row in list(zip(itertools.cycle(table.GRIDS), rows))[::every]
        if numel(shape_of(row[0])) <= LARGEST
    ]


def normalizer_of(grid: int) -> Any:
    """Counting positives is a kernel of its own, the same for all grids, and takes longer than a row's other kernels: a
    third of the rows run it."""
    return "positives" if grid == table.GRIDS[0] else 7.3


@pytest.mark.parametrize("grid, row", with_grids(ROWS, SHAPES.__getitem__), ids=str)
def test_every_shape_layout_and_type_is_the_reference_s(
    row: tuple[str, str, torch.dtype], grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, grid)
    name, layout, dtype = row
    assert_right(
        maps(SHAPES[name], layout, dtype),
        labels(SHAPES[name], often=0.02),
        SHAPES[name].classes,
        grid,
        normalizer=normalizer_of(grid),
    )


@pytest.mark.parametrize("grid, row", with_grids(ROWS, SHAPES.__getitem__), ids=str)
def test_two_numbers_per_instruction_are_as_good(
    row: tuple[str, str, torch.dtype], grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, grid, PACKED)
    name, layout, dtype = row
    assert_right(
        maps(SHAPES[name], layout, dtype),
        labels(SHAPES[name], often=0.02),
        SHAPES[name].classes,
        grid,
        normalizer=normalizer_of(grid),
    )


@pytest.mark.parametrize("grid, row", with_grids(OPTION_ROWS, lambda _: EVERYDAY), ids=str)
def test_every_option_is_the_reference_s(
    row: tuple[str, str, torch.dtype], grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, grid)
    name, layout, dtype = row
    options = dict(OPTIONS[name])
    ids = options.pop("targets", lambda ids: ids)(labels(EVERYDAY))
    assert_right(maps(EVERYDAY, layout, dtype), ids, EVERYDAY.classes, grid, **options)


@pairwise(
    loss=[name for name, loss in DECLARED.items() if loss.spec.has_cuda_levels],
    exponent=("the paper's", "another"),
    targets=("ids", "pairs"),
    layout=LAYOUTS,
    dtype=DTYPES,
    weight=test_pyramid_losses.WEIGHTS,
    name=("everyday", "aligned maps", "odd maps"),
    flavour=(FLAVOUR, PACKED),
)
def test_every_loss_of_one_logit_is_the_reference_s(
    monkeypatch: pytest.MonkeyPatch,
    loss: str,
    exponent: str,
    targets: str,
    layout: str,
    dtype: torch.dtype,
    weight: str,
    name: str,
    flavour: str,
) -> None:
    use(monkeypatch, 3, flavour)
    shape = SHAPES[name]
    ids = labels(shape, often=0.02)
    scores = torch.rand(ids.shape)
    factor = {"": None, "of images": torch.rand(shape.images, 1), "of anchors": torch.rand(ids.shape)}[weight]
    options: dict[str, Any] = dict.fromkeys(EXPONENTS[loss] if exponent == "another" else (), 1.7)
    options |= {"reduction": "sum", "weight": factor, "normalizer": 7.3}
    is_pair = targets == "pairs" or loss in SCORED
    levels = leaves(maps(shape, layout, dtype))
    wide = [level.detach().double().requires_grad_() for level in levels]
    of = [(ids, scores.to(kind)) if is_pair else ids for kind in (torch.float32, torch.float64)]
    got = getattr(focal_ext.pyramid, loss)(levels, of[0], shape.classes, **options)
    want = getattr(focal_ext.reference.pyramid, loss)(wide, of[1], shape.classes, **options)
    unit = torch.finfo(dtype).eps
    assert torch.allclose(got.double(), want, rtol=1e-5)
    for gradient, right in zip(torch.autograd.grad(got, levels), torch.autograd.grad(want, wide)):
        # One rounding to the logits' type, and float32's own error; what the chip flushes to 0 is below 1e-7.
        assert torch.allclose(gradient.double(), right, rtol=max(unit, 2e-5), atol=1e-7)


def test_negatives_that_weigh_next_to_nothing_leave_positives_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stream has positives in units of a negative's alpha, which float32 has no room for here."""
    use(monkeypatch, 1)
    levels, ids = leaves(maps(EVERYDAY, "contiguous")), labels(EVERYDAY)
    for alpha in (1e-39, 1e-50):
        loss = focal_ext.pyramid.varifocal_loss(levels, (ids, torch.ones(ids.shape)), EVERYDAY.classes, alpha=alpha)
        wide = [level.detach().double().requires_grad_() for level in levels]
        pair = ids, torch.ones(ids.shape, dtype=torch.float64)
        want = focal_ext.reference.pyramid.varifocal_loss(wide, pair, EVERYDAY.classes, alpha=alpha)
        assert torch.allclose(loss.double(), want, rtol=1e-5)
        for got, right in zip(torch.autograd.grad(loss, levels), torch.autograd.grad(want, wide)):
            assert torch.allclose(got.double(), right, rtol=2e-5, atol=1e-7)


@dtypes
@pytest.mark.parametrize(
    "name, layout, grid",
    [
        ("everyday", "mixed", 1),
        ("aligned maps", "contiguous", 3),
        ("aligned maps", "channels_last", 1),
        ("odd maps", "contiguous", 1),
    ],
)
def test_the_gradient_may_replace_the_logits_and_neither_grid_nor_order_changes_a_bit(
    name: str, layout: str, grid: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = SHAPES[name]
    # no subnormal loses bits before the factor
    levels, ids, results = (
        [level.clamp(-20, 20) for level in maps(shape, layout, dtype)],
        labels(shape),
        [],
    )
    for overwrite, blocks in ((False, table.GRIDS[-1]), (False, grid), (True, grid)):
        use(monkeypatch, blocks)
        inputs = leaves(levels)
        loss = pyramid_loss(
            [x * 1 for x in inputs], ids, shape.classes, normalizer="positives", overwrite_inputs=overwrite
        )
        results.append([*map(bits, torch.autograd.grad(4 * loss, inputs)), bits(loss)])
    assert results[0][:-1] == results[1][:-1] == results[2][:-1]
    assert results[1][-1] == results[2][-1]  # the order of a sum is the grid's


@pytest.mark.parametrize(
    "name, layout, dtype",
    list(
        zip(
            ID_DTYPES,
            itertools.cycle(("contiguous", "channels_last", "mixed")),
            itertools.cycle((torch.float32, torch.bfloat16)),
        )
    ),
    ids=str,
)
def test_a_bad_id_makes_its_anchor_nan_and_no_other(
    dtype: torch.dtype, layout: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, table.GRIDS[-1])
    monkeypatch.setattr(_run, "_check_targets", lambda logits, call: None)  # nobody reads a value on a GPU
    shape, id_dtype = SHAPES["aligned maps"], getattr(torch, name)
    ids = labels(shape).clamp(min=0).to(id_dtype)
    bad = torch.zeros(ids.shape, dtype=torch.bool)
    bad[:, ::97] = True
    wrong = ids.to(torch.int64).masked_fill(bad, torch.iinfo(id_dtype).max if name != "uint64" else -1).to(id_dtype)
    clean, broken = (
        torch.autograd.grad(pyramid_loss(inputs, i, shape.classes, ignore_index=None), inputs)
        for i in (ids, wrong)
        if (inputs := leaves(maps(shape, layout, dtype)))
    )
    for level, right, where in zip(broken, clean, bad.split(shape.counts, dim=1)):
        images, _, height, width = level.shape
        where = (
            where.view(images, height, width, shape.anchors, 1)
            .permute(0, 3, 4, 1, 2)
            .expand(-1, -1, shape.classes, -1, -1)
            .reshape(level.shape)
        )
        assert level[where].isnan().all() and where.any()
        assert torch.allclose(
            level[~where].float(), right[~where].float(), rtol=2**-7 if dtype == torch.bfloat16 else 2**-18, atol=1e-37
        )


@dtypes
@pytest.mark.parametrize(
    "name, layout, smoothing",
    [
        ("everyday", "mixed", 0.0),
        ("aligned maps", "contiguous", 0.0),
        ("aligned maps", "contiguous", 0.1),
        ("aligned maps", "channels_last", 0.0),
    ],
)
def test_logits_of_ignored_anchors_count_as_nothing_whatever_they_and_the_factor_are(
    smoothing: float, name: str, layout: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, 3)
    shape, ids = SHAPES[name], labels(SHAPES[name])
    for value, normalizer in (
        (torch.nan, "positives"),
        (torch.inf, "positives"),
        (-torch.inf, 3.0),
        (torch.nan, 1e-310),
    ):
        levels = maps(shape, "contiguous", dtype)
        ignored = []
        for level, part in zip(levels, (ids == -2).split(shape.counts, dim=1)):
            images, _, height, width = level.shape
            ignored.append(
                part.view(images, height, width, shape.anchors, 1)
                .permute(0, 3, 4, 1, 2)
                .expand(-1, -1, shape.classes, -1, -1)
                .reshape(level.shape)
            )
            level[ignored[-1]] = value
        inputs = leaves(
            [
                channels_last(level) if layout == "channels_last" or (layout == "mixed" and i % 2 == 0) else level
                for i, level in enumerate(levels)
            ]
        )
        loss = pyramid_loss(inputs, ids, shape.classes, normalizer=normalizer, label_smoothing=smoothing)
        for gradient, off in zip(torch.autograd.grad(loss, inputs), ignored):
            assert not gradient[off].any() and off.any()
            assert gradient.isfinite().all() or normalizer == 1e-310
        assert loss.isfinite() or normalizer == 1e-310


# A level of 16 and levels that a line of 2, 4 and 8 classes makes whole vectors; no two neighbours are alike.
RARE = Shape(anchors=2, classes=16, sizes=((24, 26), (17, 26), (17, 25), (3, 4)))


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize(
    "background, options",
    [
        (-1, {}),
        (16, {"ignore_index": None}),
        (-1, {"ignore_index": -1}),
        (16, {"ignore_index": 16}),
        (-1, {"label_smoothing": 0.1}),
        (-1, {"gamma": 1.5}),
    ],
    ids=str,
)
def test_tiles_without_special_labels_are_told_by_either_name_of_the_background(
    background: int, options: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, table.GRIDS[-1])
    ids = torch.full((RARE.images, sum(RARE.counts)), background)
    place = torch.arange(7, ids.numel(), 419)  # in a few tiles of each level
    ids.view(-1)[place] = place % RARE.classes
    assert_right(maps(RARE, "contiguous", dtype), ids, RARE.classes, table.GRIDS[-1], normalizer=7.3, **options)

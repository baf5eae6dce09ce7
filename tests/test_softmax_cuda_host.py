# Owns: the softmax CUDA kernels' own source, run on a device made of a CPU, against the softmax table.
# Must not know: formulas. How the device works is tests/cuda_host.
from __future__ import annotations

import itertools
from typing import Any

import focal_ext
import pytest
import test_cuda_host
import test_softmax_extremes
import torch
from cases import PUBLIC, Implementation
from cuda_host import table
from softmax_oracle import closed
from softmax_table import ROWS, Row, build
from test_cuda_host import bits, ops, public_functions_on_host_kernels, use  # noqa: F401
from test_softmax_values import check_planes
from test_softmax_values import test_loss_and_gradient_are_those_of_the_closed_form as check_row
from tolerances import TOLERANCES, Tolerance

pytestmark = test_cuda_host.pytestmark
HOST = Implementation("cuda host", focal_ext)
SMALL = [row for row in ROWS if torch.Size(row.shape).numel() <= test_cuda_host.LARGEST]
GRID_OF = dict(zip(ROWS, itertools.cycle(table.GRIDS)))  # rows take turns
TOLERANCES |= {
    ("cuda host", "float32", "softmax"): TOLERANCES["cuda", "float32", "softmax"],
    ("cuda host", "float32", "softmax sum"): TOLERANCES["cuda", "float32", "softmax sum"],
    ("cuda host", "float64", "softmax"): Tolerance(40, "the formula and libm of the CPU kernel"),
    ("cuda host", "float64", "softmax sum"): Tolerance(48, "the formula and libm of the CPU kernel"),
}


@pytest.mark.parametrize("row", SMALL, ids=str)
def test_loss_and_gradient_are_those_of_the_closed_form(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, test_cuda_host.FLAVOUR, GRID_OF[row])
    check_row(row, HOST)


# Planes have a kernel for ids, which tells types of logits and gamma at run time.
PLANES = [row for row in SMALL if row.targets.startswith("ids") and row.dtype != "float64" and len(row.shape) > 1]


@pytest.mark.parametrize("row", PLANES[::2], ids=str)
def test_planes_have_the_loss_and_gradient_of_the_closed_form(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, test_cuda_host.FLAVOUR, GRID_OF[row])
    check_planes(row, HOST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("classes, positions", [(3, 100), (80, 33), (300, 40)], ids=["few", "shared by warps", "many"])
def test_planes_of_levels_in_place_on_any_grid(classes: int, positions: int, dtype: torch.dtype) -> None:
    """Anchors, weights of images, ignored and bad ids; the gradient may replace the logits; every position's bits are
    the grid's no more."""
    rng = torch.Generator().manual_seed(0)
    levels = [(torch.randn(2, 2 * classes, n, 1, generator=rng) * 4).to(dtype) for n in (positions, 7)]
    ids = torch.randint(classes, (2, 2 * (positions + 7)), generator=rng)
    ids[:, ::5], ids[0, 3] = -100, classes
    call = focal_ext.pyramid.softmax_focal_loss.__wrapped__.__wrapped__(
        focal_ext._levels.Levels(levels, classes),
        ids,
        reduction="sum",
        normalizer="positives",
        weight=torch.rand(2, 1),
        label_smoothing=0.1,
    ).call
    results = []
    for grid in table.GRIDS:
        loss, gradients = ops(grid).pyramid_loss_and_gradient(levels, *call)
        assert loss.isnan()
        results.append(b"".join(map(bits, gradients)) + bits(ops(grid).pyramid_loss_map(levels, *call)))
        written = [level.clone() for level in levels]
        ops(grid).pyramid_gradient_(written, *call, torch.tensor(1.0), None)
        assert all(bits(a) == bits(b) for a, b in zip(written, gradients))
    assert len(set(results)) == 1
    rows = torch.cat([level.view(2, 2, classes, -1).permute(0, 3, 1, 2).reshape(2, -1, classes) for level in levels], 1)
    want = torch.cat(
        [g.view(2, 2, classes, -1).permute(0, 3, 1, 2).reshape(2, -1, classes) for g in gradients], 1
    ).float()
    of_rows = focal_ext.softmax_focal_loss.__wrapped__(
        rows, ids, reduction="sum", normalizer="positives", weight=call.weight, label_smoothing=0.1
    ).call
    got = ops().loss_and_gradient(rows, *of_rows)[1].float()
    assert (
        torch.allclose(got, want, rtol=2 * torch.finfo(dtype).eps, atol=1e-7, equal_nan=True)
        and not got[ids == -100].any()
    )


# Rows of each way to read a row of logits; of those that count rows, by a kernel that takes longer than the others and
# knows no grid, some.
LONG_AND_SHORT = [
    row for row in SMALL if row.shape in ((9, 80), (137, 91), (2, 4500), (3, 2049)) and row.reduction != "none"
]
COUNT = [row for row in LONG_AND_SHORT if row.reduction in ("mean", "sum / positives")]


@pytest.mark.parametrize("row", [row for row in LONG_AND_SHORT if row not in COUNT or row in COUNT[::6]], ids=str)
def test_the_grid_leaves_every_bit_of_maps_and_every_repetition_leaves_all(row: Row) -> None:
    x, targets, options, _ = build(row)
    call = focal_ext.softmax_focal_loss.__wrapped__(x, targets, **options).call
    results = set()
    for grid in table.GRIDS:
        loss, gradient = ops(grid).loss_and_gradient(x, *call)
        again, _ = ops(grid).loss_and_gradient(x, *call)
        assert bits(loss) == bits(again) == bits(ops(grid).loss(x, *call))
        results.add(bits(gradient) + bits(ops(grid).loss_map(x, *call)))
    assert len(results) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("classes", [3, 80, 91, 4100])
@pytest.mark.parametrize("targets", ["ids", "dense"])
@pytest.mark.parametrize("upstream", ["factor", "map"])
def test_the_gradient_may_replace_the_logits(upstream: str, targets: str, classes: int, dtype: torch.dtype) -> None:
    rows = 5 if classes > 91 else 41
    x = (torch.randn(rows, classes) * 4).to(dtype)
    chosen = torch.randint(classes, (rows,)) if targets == "ids" else torch.rand(rows, classes).to(dtype)
    factor = (
        torch.rand(rows).to(dtype)
        if upstream == "map"
        else torch.tensor(3.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    )
    call = focal_ext.softmax_focal_loss.__wrapped__(x, chosen, reduction="sum", normalizer=7.3).call
    want = ops().gradient(x, *call, factor)
    ops().gradient_(x, *call, factor)
    assert bits(x) == bits(want)


def test_a_block_shares_a_long_row() -> None:
    x, ids = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(0)) * 3, torch.tensor([5, 19_999, 70])
    t = torch.nn.functional.one_hot(ids, 20_000).double()
    want, slope, magnitude = closed(x.double(), t, t, 2.0, 0.0)
    call = focal_ext.softmax_focal_loss.__wrapped__(x, ids, reduction="sum").call
    assert ((ops().loss_map(x, *call).double() - want).abs() <= 64 * 2**-23 * want).all()
    assert ((ops().loss_and_gradient(x, *call)[1].double() - slope).abs() <= 64 * 2**-23 * magnitude + 2.0**-126).all()


def test_bad_ids_make_their_rows_nan_and_no_other() -> None:
    x, ids = torch.randn(8, 5), torch.tensor([0, 5, -1, 4, -100, 2**40, 3, -3])
    bad = torch.tensor([False, True, True, False, False, True, False, True])
    for reduction in ("none", "mean"):
        call = focal_ext.softmax_focal_loss.__wrapped__(x, ids, reduction=reduction).call
        assert torch.equal(ops().loss_map(x, *call).isnan(), bad)
        loss, gradient = ops().loss_and_gradient(x, *call)
        assert loss.isnan() and torch.equal(gradient.isnan(), bad[:, None].expand(8, 5))


@pytest.mark.parametrize("function, arguments", test_cuda_host.rows_of(test_softmax_extremes))
def test_it_holds_on_cuda_too_that(function: Any, arguments: dict[str, Any]) -> None:
    function(**arguments, implementation=PUBLIC)

# Owns: the softmax focal loss on a GPU: values and gradients against float64, bad ids.
# Must not know: how the kernels lay out their rows (../test_softmax_cuda_host.py runs them on the CPU); waiting, memory
# (test_device.py), graphs (test_graphs.py).
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import focal_ext
import pytest
import torch
from cases import Implementation
from device_step import DTYPES
from rounding import outside
from softmax_oracle import closed
from softmax_table import ROWS, Row
from test_device import waiting_is_an_error
from test_softmax_values import slack
from test_softmax_values import test_a_hundred_thousand_classes_keep_the_accuracy as check_long_rows
from test_softmax_values import test_loss_and_gradient_are_those_of_the_closed_form as check_row
from torch import Tensor

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def over_there(x: Tensor, targets: Tensor, **options: Any) -> Tensor:
    """The loss of a leaf on the CPU, computed on the GPU; its gradient comes back the same way, bit by bit."""
    moved = {name: value.cuda() if isinstance(value, Tensor) else value for name, value in options.items()}
    return focal_ext.softmax_focal_loss(x.cuda(), targets.cuda(), **moved).cpu()


EVERYDAY = ROWS[0]  # gamma 2
GPU: Any = Implementation("cuda", SimpleNamespace(__name__="focal_ext", softmax_focal_loss=over_there), "cuda")


def test_the_kernels_are_in_use_and_not_the_reference() -> None:
    x = torch.randn(8, 5, device="cuda", requires_grad=True)
    loss = focal_ext.softmax_focal_loss(x, torch.zeros(8, dtype=torch.int64, device="cuda"))
    assert type(loss.grad_fn).__name__ == "_OnePassBackward"


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_a_row_of_the_table_has_the_loss_and_gradient_of_the_closed_form(row: Row) -> None:
    check_row(row, GPU)


@pytest.mark.parametrize("classes", [20_000, 100_000])
@pytest.mark.parametrize("targets", ["ids", "smoothed", "dense"])
def test_a_hundred_thousand_classes_keep_the_accuracy(targets: str, classes: int) -> None:
    check_long_rows(targets, classes, GPU)


@dtypes
@pytest.mark.parametrize("targets", ["ids", "dense"])
@pytest.mark.parametrize("rows, classes", [(20_011, 80), (2_003, 365), (1_009, 1203)], ids=str)
def test_more_rows_than_blocks_have_the_loss_and_gradients_of_the_closed_form(
    rows: int, classes: int, targets: str, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(classes)
    x = (torch.randn(rows, classes, generator=generator) * 4).to(dtype)
    ids = torch.randint(classes, (rows,), generator=generator)
    t = torch.nn.functional.one_hot(ids, classes).to(dtype)
    if targets == "dense":
        t = (
            torch.rand(rows, classes, generator=generator)
            * (torch.rand(rows, classes, generator=generator) < 4 / classes)
        ).to(dtype)
    want, slope, magnitude = closed(x.double(), t.double(), t.double(), 2.0, 0.0)
    leaf = x.cuda().requires_grad_()
    loss = focal_ext.softmax_focal_loss(leaf, (ids if targets == "ids" else t).cuda(), reduction="none")
    (gradient,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    assert not outside(loss.detach().cpu(), want, slack(GPU, EVERYDAY, x, want, False)).any()
    assert not outside(gradient.cpu(), slope, slack(GPU, EVERYDAY, x, magnitude, False)).any()


@dtypes
@pytest.mark.parametrize("ids", [torch.int64, torch.int32, torch.int16], ids=str)
def test_a_bad_id_makes_its_row_nan_and_no_other(ids: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randn(300, 80, device="cuda", dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.full((300,), 3, device="cuda", dtype=ids)
    targets[[7, 131]] = 93
    targets[299] = -1  # no background here
    targets[[8, 130]] = -100
    with waiting_is_an_error():
        loss = focal_ext.softmax_focal_loss(x, targets, reduction="none")
        (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        total = focal_ext.softmax_focal_loss(x, targets)
        (scaled,) = torch.autograd.grad(total, x)
    for result in (loss[:, None], gradient, scaled):
        assert result.isnan().all(1).nonzero().flatten().tolist() == [7, 131, 299]
        assert int(result.isnan().sum()) == 3 * result.shape[1]
        assert not result[[8, 130]].any()
    assert total.isnan()

# Owns: every row of the softmax table, loss and gradient, against the closed form; the closed form against 50 digits;
# long rows.
# Must not know: formulas.
from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from cases import IMPLEMENTATIONS, Call, Implementation
from rounding import outside
from softmax_oracle import Expected, closed, expected, textbook_point
from softmax_table import LOSS, ROWS, Row, build
from tolerances import EXPONENT, FLUSHED, SUBNORMAL, units
from torch import Tensor

implementations = pytest.mark.parametrize(
    "implementation", IMPLEMENTATIONS, ids=lambda i: f"{i.module.__name__} {i.name}"
)


def slack(implementation: Implementation, row: Row, x: Tensor, magnitude: Tensor, reduced: bool) -> Tensor:
    accumulation = torch.float64 if x.dtype == torch.float64 else torch.float32
    relative = units(implementation.name, x.dtype, "softmax sum" if reduced else "softmax")
    if accumulation == torch.float64 and x.numel():
        relative += EXPONENT.units * torch.finfo(accumulation).eps * (1 + row.gamma) * float(x.double().abs().amax())
    smallest = torch.finfo(accumulation).smallest_normal * torch.finfo(accumulation).eps
    absolute = (FLUSHED if implementation.name.startswith("cuda") else SUBNORMAL).units * smallest
    return relative * magnitude + absolute * (1 + row.gamma) * 120 * max(1, x.numel() if reduced else 1)


def first_off(what: str, got: Tensor, want: Tensor, off: Tensor) -> str:
    at = tuple(off.nonzero()[0].tolist())
    return (
        f"{int(off.sum())} of {off.numel()} {what} are off; the first at {at}: got {got[at].item()!r}, want "
        f"{want[at].item()!r}"
    )


@implementations
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_loss_and_gradient_are_those_of_the_closed_form(row: Row, implementation: Implementation) -> None:
    call = build(row)
    assert_right(row, implementation, call, *call.run(implementation, LOSS))


@pytest.mark.native
@pytest.mark.parametrize("row", [row for row in ROWS if len(row.shape) > 1][::2], ids=str)
def test_planes_are_as_exact_as_rows(row: Row) -> None:
    check_planes(row, IMPLEMENTATIONS[0])


def check_planes(row: Row, implementation: Implementation) -> None:
    """The rows of the table as positions: of a matrix those of one image."""
    call = build(row)
    added = call.inputs.dim() == 2

    def planes(t: Tensor) -> Tensor:
        return (t[None] if added else t).movedim(-1, 1).contiguous()

    dense = call.targets.dim() == call.inputs.dim()
    targets = planes(call.targets) if dense else call.targets[None] if added else call.targets
    upstream = call.upstream[None] if added and call.upstream.dim() else call.upstream
    moved = Call(planes(call.inputs), targets, {**call.options, "class_dim": 1}, upstream)
    loss, gradient = moved.run(implementation, LOSS)
    gradient = gradient.movedim(1, -1)
    assert_right(
        row, implementation, call, loss[0] if added and loss.dim() else loss, gradient[0] if added else gradient
    )


@lru_cache(maxsize=1)  # the implementations of a row follow each other
def exact(row: Row) -> Expected:
    return expected(build(row))


def assert_right(row: Row, implementation: Implementation, call: Call, loss: Tensor, gradient: Tensor) -> None:
    want = exact(row)
    assert loss.shape == want.loss.shape and gradient.shape == call.inputs.shape
    narrow = call.inputs.dtype in (torch.bfloat16, torch.float16)
    assert gradient.dtype == call.inputs.dtype
    assert loss.dtype == (torch.float32 if narrow and row.reduction != "none" else call.inputs.dtype)
    off = outside(
        loss, want.loss, slack(implementation, row, call.inputs, want.loss_magnitude, row.reduction != "none")
    )
    assert not off.any(), first_off("losses", loss, want.loss, off)
    off = outside(gradient, want.gradient, slack(implementation, row, call.inputs, want.gradient_magnitude, False))
    assert not off.any(), first_off("gradients", gradient, want.gradient, off)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
def test_the_closed_form_is_the_textbook_in_50_digits(gamma: float) -> None:
    rng = torch.Generator().manual_seed(0)
    for spread in (0.3, 3.0, 30.0):
        x = torch.randn(4, 5, dtype=torch.float64, generator=rng) * spread
        t = torch.eye(5, dtype=torch.float64)[torch.arange(4)]
        t[3] = torch.rand(5, dtype=torch.float64, generator=rng)
        loss, gradient, magnitude = closed(x, t, t, gamma, 0.0)
        for i in range(4):
            want, slopes = textbook_point(x[i].tolist(), t[i].tolist(), gamma)
            assert loss[i].item() == pytest.approx(want, rel=1e-12)
            assert ((gradient[i] - torch.tensor(slopes, dtype=torch.float64)).abs() <= 1e-12 * magnitude[i]).all()


@implementations
@pytest.mark.parametrize("classes", [20_000, 100_000])
@pytest.mark.parametrize("targets", ["ids", "smoothed", "dense"])
def test_a_hundred_thousand_classes_keep_the_accuracy(
    targets: str, classes: int, implementation: Implementation
) -> None:
    x = torch.randn(3, classes, generator=torch.Generator().manual_seed(1)) * 3
    ids, smoothing = torch.tensor([5, classes - 1, 70]), 0.1 if targets == "smoothed" else 0.0
    x[0, 5] = 40.0  # a row that is sure, and right
    t = torch.nn.functional.one_hot(ids, classes).double()
    if targets == "dense":
        t = torch.rand(3, classes, generator=torch.Generator().manual_seed(2)).double() * (
            torch.arange(classes) % 7 == 0
        )
    want, slope, magnitude = closed(x.double(), t, t, 2.0, smoothing)
    leaf = x.clone().requires_grad_()
    loss = implementation.module.softmax_focal_loss(
        leaf, t.float() if targets == "dense" else ids, reduction="none", label_smoothing=smoothing
    )
    (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    room = units(implementation.name, torch.float32, "softmax sum")
    assert ((loss.double() - want).abs() <= room * want).all()
    assert ((gradient.double() - slope).abs() <= room * magnitude + 1e-43).all()

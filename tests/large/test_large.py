# Owns: calls on 2^31 + 17 logits, more than 32 bits count, in bfloat16: rows with class ids and with dense targets, and
# a pyramid in both layouts.
# Must not know: formulas. What a call on a block gives is proved elsewhere; here every block must get the same, to the
# bit.
#
# `make test-large`; pytest does not collect it otherwise.
from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from pathlib import Path

import focal_ext
import pytest
import torch
from torch import Tensor

NUMEL, CLASSES = 2**31 + 17, 5
ROWS = NUMEL // CLASSES
BLOCK = 2**16 * CLASSES  # logits that are repeated, and compared at once
NEEDED = 12e9  # bytes: logits, gradient and dense targets of 2, 2 and 1 bytes each, class ids
assert ROWS * CLASSES == NUMEL


@pytest.fixture(scope="module", autouse=True)
def memory() -> None:
    found = re.search(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())
    available = int(found[1]) * 1024 if found else 0
    assert available > NEEDED, (
        f"these calls need {NEEDED / 1e9:.0f} GB of free memory, this machine has {available / 1e9:.1f}"
    )


@pytest.fixture(autouse=True)
def freed() -> Iterator[None]:
    yield
    gc.collect()


def random_block() -> tuple[Tensor, Tensor]:
    """Logits [rows, classes] of N(-2, 3), and class ids, some of them ignored."""
    rng = torch.Generator().manual_seed(0)
    rows = BLOCK // CLASSES
    return (torch.randn(rows, CLASSES, generator=rng) * 3 - 2).bfloat16(), torch.randint(
        -2, CLASSES + 1, (rows,), generator=rng, dtype=torch.int8
    )


def repeated(block: Tensor, numel: int) -> Tensor:
    """The flat block over and over, cut off at numel."""
    flat, result = block.flatten(), torch.empty(numel, dtype=block.dtype)
    for start in range(0, numel, flat.numel()):
        result[start : start + flat.numel()] = flat[: numel - start]
    return result


def assert_repeats(values: Tensor, block: Tensor) -> None:
    """Every value is that of its place in the block, to the bit."""
    values, flat = values.flatten(), block.flatten()
    wrong = [
        start
        for start in range(0, values.numel(), flat.numel())
        if not torch.equal(values[start : start + flat.numel()], flat[: values.numel() - start])
    ]
    assert not wrong, f"{len(wrong)} blocks differ, the first at logit {wrong[0]} of {values.numel()}"


def sum_of(block: Tensor, rest: Tensor, count: int) -> Tensor:
    return block.double() * count + rest.double()


def of_block(targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of a block with these targets, its gradient, and the loss of the part of a block that comes last."""
    logits = random_block()[0].requires_grad_()
    loss = focal_ext.sigmoid_focal_loss(logits, targets, reduction="sum")
    rest = ROWS % (BLOCK // CLASSES)
    return (
        loss.detach(),
        torch.autograd.grad(loss, logits)[0],
        focal_ext.sigmoid_focal_loss(logits.detach()[:rest], targets[:rest], reduction="sum"),
    )


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwritten"])
@pytest.mark.parametrize("kind", ["class ids", "dense targets"])
def test_rows(kind: str, overwrite: bool) -> None:
    logits, ids = random_block()
    block = ids if kind == "class ids" else ids[:, None] == torch.arange(CLASSES)
    loss_of_block, gradient_of_block, rest = of_block(block)
    targets = repeated(block, ROWS if kind == "class ids" else NUMEL).view(-1, *block.shape[1:])
    x = repeated(logits, NUMEL).view(ROWS, CLASSES)
    one = torch.ones((), requires_grad=True)  # what the logits came from, in place of a network
    inputs = x.detach().requires_grad_() if not overwrite else Same.apply(x, one)
    loss = focal_ext.sigmoid_focal_loss(inputs, targets, reduction="sum", overwrite_inputs=overwrite)
    torch.testing.assert_close(loss.detach().double(), sum_of(loss_of_block, rest, NUMEL // BLOCK), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, inputs)
    assert not overwrite or gradient.data_ptr() == x.data_ptr()
    assert_repeats(gradient, gradient_of_block)


class Same(torch.autograd.Function):
    """The tensor itself, as if a layer had computed it."""

    @staticmethod
    def forward(ctx: object, x: Tensor, one: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[None, None]:
        return None, None


def test_unreduced_losses_of_rows() -> None:
    logits, ids = random_block()
    want = focal_ext.sigmoid_focal_loss(logits, ids)
    x = repeated(logits, NUMEL).view(ROWS, CLASSES)
    assert_repeats(focal_ext.sigmoid_focal_loss(x, repeated(ids, ROWS)), want)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_a_pyramid(layout: str) -> None:
    """One level [1, classes, 1, positions]; its planes are the columns of the rows."""
    logits, ids = random_block()
    loss_of_block, gradient_of_block, rest = of_block(ids)
    if layout == "channels_last":
        level = repeated(logits, NUMEL).view(1, 1, ROWS, CLASSES).permute(0, 3, 1, 2)
    else:
        level = torch.stack([repeated(column, ROWS) for column in logits.unbind(1)]).view(1, CLASSES, 1, ROWS)
    level.requires_grad_()
    loss = focal_ext.pyramid.sigmoid_focal_loss([level], repeated(ids, ROWS)[None], CLASSES)
    torch.testing.assert_close(loss.detach().double(), sum_of(loss_of_block, rest, NUMEL // BLOCK), rtol=1e-6, atol=0)
    (gradient,) = torch.autograd.grad(loss, level)
    if layout == "channels_last":
        assert_repeats(gradient.permute(0, 2, 3, 1), gradient_of_block)
    for plane, column in zip(gradient[0], gradient_of_block.unbind(1)) if layout == "contiguous" else ():
        assert_repeats(plane, column)

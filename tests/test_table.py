# Owns: that large calls in half types, which look results up in a table of all 65,536 logits, give what small calls
# compute by the formula.
# Must not know: what the right results are (test_values.py, test_numerics.py ask small calls).
from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import focal_ext
import pytest
import torch
from family import MEMBERS, SCORED, Member, every_member, scores_of
from torch import Tensor

pytestmark = pytest.mark.native
HALVES = (torch.bfloat16, torch.float16)
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
ABOVE = 2**19  # logits of a call with class ids that looks up (csrc/cpu/run.cpp)
CLASSES = 9
ROWS = 65536
assert ROWS * CLASSES > ABOVE


def bits(result: Tensor) -> bytes:
    return result.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def every_logit(dtype: torch.dtype, finite: bool = False) -> Tensor:
    """Every bit pattern, each in every column, in rows of their own order."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    columns = [patterns[torch.randperm(ROWS, generator=torch.Generator().manual_seed(c))] for c in range(CLASSES)]
    x = torch.stack(columns, 1)
    return torch.where(x.isfinite() & (x.abs() < 60), x, torch.ones_like(x)) if finite else x


def class_ids(rows: int, share: float = 0.1) -> Tensor:
    """Background, and a share each positives and ignored, by default so many that half of the blocks of rows have too
    many for looking up; two ignored rows follow each other, two positives, and the last is a positive."""
    rng = torch.Generator().manual_seed(1)
    draw = torch.rand(rows, generator=rng)
    ids = torch.where(draw < share, torch.randint(0, CLASSES, (rows,), generator=rng), -1).masked_fill(
        draw > 1 - share, -2
    )
    ids[100:102], ids[200:202], ids[-1] = -2, 3, CLASSES - 1
    return ids


def results(loss_of: Member, x: Tensor, targets: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    loss = loss_of(leaf, targets, **options)
    (gradient,) = torch.autograd.grad(loss, leaf, torch.ones((), dtype=loss.dtype).expand_as(loss))
    return loss.detach(), gradient


def in_parts(loss_of: Member, x: Tensor, ids: Tensor, **options: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """By calls too small for a table."""
    for part, part_ids, scores in zip(x.split(2**14), ids.split(2**14), scores_of(ids).split(2**14)):
        yield results(loss_of, part, (part_ids, scores) if loss_of.loss in SCORED else part_ids, **options)


@every_half
@every_member
def test_the_gradient_of_every_logit_has_the_bits_of_small_calls(loss_of: Member, dtype: torch.dtype) -> None:
    x, ids = every_logit(dtype), class_ids(ROWS)
    _, whole = results(loss_of, x, ids, reduction="sum", normalizer=7.0)
    parts = torch.cat([gradient for _, gradient in in_parts(loss_of, x, ids, reduction="sum", normalizer=7.0)])
    assert bits(whole) == bits(parts)


@every_half
@every_member
def test_the_loss_map_of_every_logit_has_the_bits_of_small_calls(loss_of: Member, dtype: torch.dtype) -> None:
    x, ids = every_logit(dtype), class_ids(ROWS)
    with torch.no_grad():
        whole = loss_of(x, ids)
    assert bits(whole) == bits(torch.cat([loss for loss, _ in in_parts(loss_of, x, ids)]))


@every_half
@every_member
def test_the_sum_is_that_of_small_calls_with_and_without_a_gradient(loss_of: Member, dtype: torch.dtype) -> None:
    x, ids = every_logit(dtype, finite=True), class_ids(ROWS)
    whole, _ = results(loss_of, x, ids, reduction="sum")
    parts = sum(loss.double() for loss, _ in in_parts(loss_of, x, ids, reduction="sum"))
    # 64 float32 values are added up before they are widened, in one order or another.
    assert abs(whole.double() - parts) <= 64 * 2.0**-24 * parts
    assert bits(whole) == bits(loss_of(x, ids, reduction="sum"))


@every_half
def test_ignored_rows_are_zero_whatever_their_logits(dtype: torch.dtype) -> None:
    x = every_logit(dtype)
    loss, gradient = results(MEMBERS["sigmoid focal"], x, torch.full((ROWS,), -2), reduction="sum")
    assert loss == 0 and bits(gradient) == bytes(2 * x.numel())


@every_half
def test_a_bad_id_is_nan_in_its_row_where_nothing_can_raise(dtype: torch.dtype) -> None:
    x, bad = every_logit(dtype, finite=True), torch.arange(ROWS) == 77
    compiled = torch.compile(lambda x, ids: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum"), backend="aot_eager")
    leaf = x.clone().requires_grad_()
    loss = compiled(leaf, torch.where(bad, CLASSES + 5, -1))
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert loss.isnan() and gradient[bad].isnan().all() and gradient[~bad].isfinite().all()


@every_half
def test_dense_targets_are_looked_up_where_they_are_zero(dtype: torch.dtype) -> None:
    x = every_logit(dtype).repeat(8, 1)  # tables for dense targets begin at 2^22 logits
    t = torch.zeros_like(x)
    t[:: ROWS // 7, 2], t[5000:5003] = 0.3, 1.0
    whole = results(MEMBERS["sigmoid focal"], x, t, reduction="sum", normalizer=3.0)[1]
    parts = [
        results(MEMBERS["sigmoid focal"], a, b, reduction="sum", normalizer=3.0)[1]
        for a, b in zip(x.split(2**14), t.split(2**14))
    ]
    assert bits(whole) == bits(torch.cat(parts))


@every_half
def test_the_logits_may_be_overwritten(dtype: torch.dtype) -> None:
    x, ids = every_logit(dtype), class_ids(ROWS)
    _, want = results(MEMBERS["sigmoid focal"], x, ids, reduction="sum")
    target = x.clone().requires_grad_().clone()
    (overwritten,) = torch.autograd.grad(
        focal_ext.sigmoid_focal_loss(target, ids, reduction="sum", overwrite_inputs=True), target
    )
    assert bits(overwritten) == bits(want) and overwritten.data_ptr() == target.data_ptr()


@every_half
@pytest.mark.parametrize("threads", [2, 3, 4])
def test_any_number_of_threads_gives_the_same_bits(threads: int, dtype: torch.dtype) -> None:
    x, ids = every_logit(dtype, finite=True), class_ids(ROWS)
    torch.set_num_threads(1)
    once = results(MEMBERS["sigmoid focal"], x, ids, reduction="mean")
    torch.set_num_threads(threads)
    again = results(MEMBERS["sigmoid focal"], x, ids, reduction="mean")
    assert [*map(bits, again)] == [*map(bits, once)]


@every_half
# of a strip of 512 positions 51 or 3 are ignored
@pytest.mark.parametrize("share", [0.1, 0.005], ids=["by the formula", "looked up"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_pyramid_looks_up_as_rows_do(layout: torch.memory_format, share: float, dtype: torch.dtype) -> None:
    anchors, sizes = 4, ((96, 97), (48, 49))
    rng = torch.Generator().manual_seed(3)
    levels = [
        (torch.randn(2, anchors * CLASSES, *size, generator=rng) * 4 - 2)
        .to(dtype)
        .contiguous(memory_format=layout)
        .requires_grad_()
        for size in sizes
    ]
    assert sum(level.numel() for level in levels) > ABOVE
    rows = torch.cat(
        [level.unflatten(1, (anchors, CLASSES)).permute(0, 3, 4, 1, 2).reshape(2, -1, CLASSES) for level in levels], 1
    )
    ids = class_ids(rows.shape[0] * rows.shape[1], share).view(rows.shape[:-1])
    total = focal_ext.pyramid.sigmoid_focal_loss(levels, ids, num_classes=CLASSES, normalizer="positives")
    want = focal_ext.sigmoid_focal_loss(rows, ids, reduction="sum", normalizer="positives")
    assert abs(total - want) <= 64 * 2.0**-24 * want
    for got, exact in zip(torch.autograd.grad(total, levels), torch.autograd.grad(want, levels)):
        assert bits(got.contiguous()) == bits(exact.contiguous())


def digested() -> list[bytes]:
    """Gradients and sums, for comparisons of instruction sets (test_determinism.py)."""
    calls = itertools.product((MEMBERS["sigmoid focal"], MEMBERS["quality focal"]), HALVES)
    ids = class_ids(ROWS)
    return [
        bits(part)
        for loss_of, dtype in calls
        for part in results(loss_of, every_logit(dtype, finite=True), ids, reduction="sum")
    ]

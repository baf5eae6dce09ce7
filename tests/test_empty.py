# Owns: calls with nothing, or nothing that counts, in them: loss 0, gradient 0, no NaN.
# Must not know: formulas.
from __future__ import annotations

import pytest
import torch
from cases import ID_DTYPES, IMPLEMENTATIONS, Implementation
from family import EVERYDAY, Member, every_loss
from pairwise import pairwise

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
REDUCTIONS = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "mean": {"reduction": "mean"},
    "positives": {"reduction": "sum", "normalizer": "positives"},
    "float": {"reduction": "sum", "normalizer": 3.0},
    "tensor": {"reduction": "sum", "normalizer": torch.tensor(3.0)},
}
reductions = pytest.mark.parametrize("reduction", REDUCTIONS)


SHAPES = ((0, 80), (5, 0), (0, 0), (0,), (2, 0, 4), (2, 3, 0), (0, 3, 2, 5))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@implementations
# no kernel runs: all losses share what does
@pairwise(shape=SHAPES, dtype=DTYPES, reduction=REDUCTIONS, member=EVERYDAY)
def test_no_logits_give_0_and_an_empty_gradient(
    shape: tuple, dtype: torch.dtype, reduction: str, member: str, implementation: Implementation
) -> None:
    loss_of = EVERYDAY[member]
    x = torch.zeros(shape, dtype=dtype, requires_grad=True)
    for targets in (torch.full(shape[:-1], -1), torch.zeros(shape)):
        if reduction == "positives" and targets.dim() == x.dim():
            continue
        for weight in (None, torch.ones(shape[-1:]), torch.ones(*shape[:-1], 1), torch.ones(shape)):
            loss = loss_of.on(implementation)(x, targets, weight=weight, **REDUCTIONS[reduction])
            assert loss.shape == (shape if reduction == "none" else ()) and not loss.any()
            (gradient,) = torch.autograd.grad(loss.sum(), x)
            assert gradient.shape == x.shape and gradient.dtype == dtype


@every_loss
@implementations
@reductions
@pytest.mark.parametrize("shape", [(4, 80), (1, 1), (700, 30)], ids=str)
def test_rows_that_are_all_ignored_give_exactly_0(
    shape: tuple, reduction: str, implementation: Implementation, loss_of: Member
) -> None:
    x = torch.randn(shape, requires_grad=True)
    loss = loss_of.on(implementation)(x, torch.full(shape[:-1], -2), **REDUCTIONS[reduction])
    loss.sum().backward()
    assert not loss.any() and not x.grad.any()


@implementations
def test_no_positive_divides_by_1_and_one_positive_too(implementation: Implementation) -> None:
    x = torch.randn(50, 3)
    for ids in (
        torch.full((50,), -1),
        torch.full((50,), 3),
        torch.tensor([0] + [-1] * 49),
        torch.tensor([-2] * 49 + [-1]),
    ):
        total, divided = (
            implementation.module.sigmoid_focal_loss(x, ids, **REDUCTIONS[r]) for r in ("sum", "positives")
        )
        assert total == divided and total > 0


@implementations
@pytest.mark.parametrize("name", ID_DTYPES)
def test_one_class_is_a_column_of_binary_targets_for_every_integer_type(
    name: str, implementation: Implementation
) -> None:
    dtype = getattr(torch, name)
    x, other = torch.randn(9, 1), -1 if dtype.is_signed else 0  # no unsigned id is background
    ids = torch.tensor([0, other] * 4 + [0])
    dense = (ids == 0).to(dtype)[:, None]
    loss = implementation.module.sigmoid_focal_loss(x, ids.to(dtype))
    assert torch.allclose(loss, implementation.module.sigmoid_focal_loss(x, dense), rtol=1e-5)
    with pytest.raises(ValueError, match="class id 1 at anchor 1 is ambiguous with one class"):
        implementation.module.sigmoid_focal_loss(x, (torch.arange(9) % 2).to(dtype))


@every_loss
@implementations
def test_mean_divides_by_the_logits_that_are_not_ignored(implementation: Implementation, loss_of: Member) -> None:
    x, ids = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, -2, -1, 5, -2, 4])
    each = loss_of.on(implementation)(x, ids)
    assert loss_of.on(implementation)(x, ids, reduction="mean").item() == pytest.approx(
        each.sum().item() / 20, rel=1e-12
    )
    assert loss_of.on(implementation)(x, ids, reduction="sum", normalizer="positives").item() == pytest.approx(
        each.sum().item() / 2, rel=1e-12
    )
    dense = torch.rand(6, 5, dtype=torch.float64)
    each = loss_of.on(implementation)(x, dense)
    assert loss_of.on(implementation)(x, dense, reduction="mean").item() == pytest.approx(each.mean().item(), rel=1e-12)


@every_loss
@implementations
def test_a_normalizer_of_0_or_nan_that_nobody_reads_is_seen_in_the_result(
    implementation: Implementation, loss_of: Member
) -> None:
    for value in (0.0, torch.nan):
        x = torch.randn(6, 5, requires_grad=True)
        loss = loss_of.on(implementation)(x, torch.rand(6, 5), reduction="sum", normalizer=torch.tensor(value))
        (gradient,) = torch.autograd.grad(loss, x)
        assert not loss.isfinite() and not gradient.isfinite().any()

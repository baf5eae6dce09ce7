# Owns: logits and gammas at and beyond the ends of their ranges: limits, NaN, ignored and bad rows.
# Must not know: accuracy in the middle (test_softmax_values.py).
from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from cases import IMPLEMENTATIONS, Implementation
from tolerances import units
from torch import Tensor

INF, NAN = math.inf, math.nan
GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 5.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def run(implementation: Implementation, x: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    loss = implementation.module.softmax_focal_loss(leaf, targets, **{"reduction": "none", **options})
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


def kinds(ids: Tensor, classes: int) -> list[Tensor]:
    return [ids, torch.nn.functional.one_hot(ids, classes).float()]


# Logits, label, loss, gradient: limits that hold for every gamma.
LIMITS = [
    ([INF, 0.0, 1.0], 0, 0.0, [0.0, 0.0, 0.0]),
    ([INF, 0.0, 1.0], 1, INF, [1.0, -1.0, 0.0]),
    ([-INF, 0.0, -INF], 0, INF, [-1.0, 1.0, 0.0]),
    ([-INF, 0.0, -INF], 1, 0.0, [0.0, 0.0, 0.0]),
    ([INF, -INF, 5.0], 1, INF, [1.0, -1.0, 0.0]),
    ([60000.0, -60000.0, 0.0], 1, 120000.0, [1.0, -1.0, 0.0]),
    ([60000.0, -60000.0, 0.0], 0, 0.0, [0.0, 0.0, 0.0]),
    ([2.0], 0, 0.0, [0.0]),
    ([INF], 0, 0.0, [0.0]),
    ([-INF], 0, 0.0, [0.0]),
]


@implementations
@dtypes
@pytest.mark.parametrize("logits, label, loss, gradient", LIMITS, ids=str)
def test_infinite_and_large_logits_give_their_limits(
    logits: list, label: int, loss: float, gradient: list, dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.tensor([logits], dtype=dtype)
    for gamma, targets in product(GAMMAS, kinds(torch.tensor([label]), len(logits))):
        got, slope = run(implementation, x, targets, gamma=gamma)
        assert torch.equal(got, torch.tensor([loss], dtype=torch.float64).to(dtype)), f"gamma {gamma}"
        assert torch.equal(slope, torch.tensor([gradient], dtype=dtype)), f"gamma {gamma}"


@implementations
@dtypes
@pytest.mark.parametrize(
    "logits",
    [[INF, INF, 0.0], [-INF, -INF, -INF], [NAN, 0.0, 0.0], [0.0, 1.0, NAN], [INF, NAN, 0.0], [NAN, NAN, NAN]],
    ids=str,
)
def test_a_row_without_a_limit_is_nan_and_no_other(
    logits: list, dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.randn(40, 3).to(dtype)
    x[7] = x[39] = torch.tensor(logits, dtype=dtype)
    bad = (torch.arange(40) == 7) | (torch.arange(40) == 39)
    for gamma, targets in product(GAMMAS, (*kinds(torch.arange(40) % 3, 3), torch.rand(40, 3))):
        for smoothing in (0.0, 0.1) if targets.dim() == 1 else (0.0,):
            loss, gradient = run(implementation, x, targets, gamma=gamma, label_smoothing=smoothing)
            assert torch.equal(loss.isnan(), bad) and torch.equal(gradient.isnan(), bad[:, None].expand(40, 3)), (
                f"gamma {gamma}"
            )


@implementations
@pytest.mark.parametrize("gamma", [0.0, 1e-300, 1e-3, 0.5, 2.0, 13.0, 60.0, 1e3, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_finite_logits_and_any_gamma_give_finite_results_that_fall_with_gamma(
    dtype: torch.dtype, gamma: float, implementation: Implementation
) -> None:
    sides = torch.cat([torch.linspace(-300, 300, 601), torch.tensor([-1e38, 1e38, 1e-30, 17.3])])
    x = torch.stack([sides, torch.zeros_like(sides), torch.full_like(sides, -3.0)], -1).to(dtype)
    x = torch.cat([x, torch.tensor([[95.0, 0.0, -1e38]], dtype=dtype)])
    for label in range(3):
        for targets in kinds(torch.full((len(x),), label), 3):
            loss, gradient = run(implementation, x, targets, gamma=gamma)
            entropy, slope = run(implementation, x, targets, gamma=0.0)
            assert loss.isfinite().all() and gradient.isfinite().all()
            assert (loss <= entropy * 1.00001).all() and (loss >= 0).all()
            if gamma < 1e-30:
                assert torch.allclose(loss, entropy, rtol=1e-5) and torch.allclose(gradient, slope, rtol=1e-5)
        # A smoothed loss of 1e38 times gamma leaves float32's range on its way through autograd, so the reference stops
        # at 300.
        near = x if implementation.name == "native" else x[x.abs().amax(-1) < 1e30]
        smoothed, gradient = run(
            implementation, near, torch.full((len(near),), label), gamma=gamma, label_smoothing=0.1
        )
        assert smoothed.isfinite().all() and gradient.isfinite().all()


@implementations
@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_ignored_rows_give_exactly_nothing_whatever_their_logits_and_weights(
    reduction: str, dtype: torch.dtype, implementation: Implementation
) -> None:
    x, ids, weight = torch.randn(12, 5).to(dtype), torch.tensor([0, 1, 4, 1] * 3), torch.rand(12)
    ids[2:9] = -100
    clean = run(implementation, x, ids, reduction=reduction, weight=weight)
    x[2], x[3], x[4], x[5, 0] = NAN, INF, -INF, NAN
    weight[6], weight[7] = INF, NAN
    loss, gradient = run(implementation, x, ids, reduction=reduction, weight=weight)
    assert torch.equal(loss, clean[0]) and torch.equal(gradient, clean[1])
    assert not gradient[2:9].any() and gradient[:2].all() and (reduction != "none" or not loss[2:9].any())


@implementations
def test_alpha_0_counts_0_where_the_loss_is_infinite_and_weight_0_multiplies(implementation: Implementation) -> None:
    x = torch.tensor([[INF, 0.0], [0.0, 1.0]])
    for targets in kinds(torch.tensor([1, 1]), 2):
        loss, gradient = run(implementation, x, targets, alpha=[1.0, 0.0])
        assert loss.tolist() == [0, 0] and not gradient.any()
        loss, _ = run(implementation, x, targets, weight=torch.zeros(()))
        assert loss[0].isnan() and loss[1] == 0


@implementations
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_sure_row_keeps_its_relative_accuracy(gamma: float, implementation: Implementation) -> None:
    """1 - p of a sure row is a sum of small exponentials: 1e-30 and not 0."""
    x = torch.tensor([[40.0, -20.0, -20.5, -21.0]])
    rest = float(torch.exp(x.double()[0, 1:] - 40).sum())
    loss, gradient = run(implementation, x, torch.tensor([0]), gamma=gamma)
    assert loss.item() == pytest.approx(rest ** (1 + gamma), rel=1e-5, abs=1e-45)
    assert gradient[0, 0].item() == pytest.approx(-(1 + gamma) * rest ** (1 + gamma), rel=1e-5, abs=1e-44)


@implementations
@pytest.mark.parametrize("smoothing", [0.9, 0.999, 0.99999])
def test_what_smoothing_keeps_of_a_label_is_not_rounded(smoothing: float, implementation: Implementation) -> None:
    """1 - s of a float32 s has few digits, and of a label far below the others it is most of the loss: 270 units of
    error at 0.99999."""
    x = torch.zeros(2, 1203)
    x[:, 3] = torch.tensor([-80.0, -1e6])
    ids, room = torch.tensor([3, 3]), units(implementation.name, torch.float32, "softmax")
    loss, gradient = run(implementation, x, ids, label_smoothing=smoothing)
    exact, slope = run(implementation, x.double(), ids, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), exact, rtol=room, atol=0)
    torch.testing.assert_close(gradient[:, 3].double(), slope[:, 3], rtol=room, atol=0)

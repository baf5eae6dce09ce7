# Owns: logits, targets and gammas at and beyond the ends of their ranges: limits, NaN, ignored rows.
# Must not know: accuracy in the middle (test_numerics.py).
from __future__ import annotations

import math

import pytest
import torch
from cases import GAMMAS, IMPLEMENTATIONS, Implementation
from oracle import soft
from torch import Tensor

INF, NAN = math.inf, math.nan
LOGITS = tuple(sign * size for size in (0.0, 17.0, 88.8, 104.0, 120.0, 800.0, 60000.0, 3e38, INF) for sign in (1, -1))
ALPHAS = (None, 0.25, 0.0, 1.0)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def limit(x: float, t: float, alpha: float | None, gamma: float) -> tuple[float, float]:
    """Loss and gradient, with the limits of the formula where the logit is so large that exp(-|x|) is 0."""
    alpha_t = 1.0 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    if alpha_t == 0:
        return 0.0, 0.0
    if abs(x) <= 120:
        closed = soft(torch.tensor(x, dtype=torch.float64), torch.tensor(t, dtype=torch.float64), gamma)
        return alpha_t * float(closed.loss), alpha_t * float(closed.gradient)
    share, sign = (1 - t, 1) if x > 0 else (t, -1)  # of the target that the logit contradicts
    power = share**gamma
    return (alpha_t * power * abs(x) * share if share else 0.0), sign * alpha_t * power * share


def run(implementation: Implementation, x: Tensor, targets: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    loss = implementation.module.sigmoid_focal_loss(leaf, targets, **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]


# Targets by name: of a column of logits, and the value of each.
TARGETS = {
    "background ids": lambda n: (torch.full((n,), -1), 0.0),
    "positive ids": lambda n: (torch.zeros(n, dtype=torch.int64), 1.0),
    "dense 0": lambda n: (torch.zeros(n, 1), 0.0),
    "dense 1": lambda n: (torch.ones(n, 1), 1.0),
    "dense bool": lambda n: (torch.ones(n, 1, dtype=torch.bool), 1.0),
    "dense .25": lambda n: (torch.full((n, 1), 0.25), 0.25),
}


@implementations
@dtypes
@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_loss_and_gradient_at_extreme_logits_are_their_limits(gamma: float, kind: str, dtype: torch.dtype, implementation: Implementation) -> None:
    x = torch.tensor(LOGITS, dtype=torch.float64).to(dtype)[:, None]
    targets, t = TARGETS[kind](len(x))
    for alpha in ALPHAS:
        loss, gradient = run(implementation, x, targets, alpha=alpha, gamma=gamma)
        for i, logit in enumerate(x.double().flatten().tolist()):
            want = torch.tensor(limit(logit, t, alpha, gamma), dtype=torch.float64).to(dtype)
            got = torch.stack([loss[i, 0], gradient[i, 0]])
            # 2^-6: these are limits and magnitudes, rounded to as few as 8 bits; the smallest results are subnormals of one or two bits
            near = torch.isclose(got.double(), want.double(), rtol=2**-6, atol=8 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps)
            assert near.all(), f"alpha {alpha}, x {logit}: got {got.tolist()}, want {want.tolist()}"


@implementations
@dtypes
@pytest.mark.parametrize("gamma", GAMMAS)
def test_nan_logits_and_targets_show_in_their_own_results_and_nowhere_else(gamma: float, dtype: torch.dtype, implementation: Implementation) -> None:
    x = torch.randn(40, 30).to(dtype)
    dense = torch.rand(40, 30).to(dtype)
    ids = torch.randint(-1, 31, (40,))
    x[3, 4] = x[39, 29] = NAN
    bad = x.isnan()
    for targets in (ids, torch.full((40,), -1), dense, torch.zeros(40, 30)):
        for alpha in ALPHAS[:2]:
            for result in run(implementation, x, targets, alpha=alpha, gamma=gamma):
                assert torch.equal(result.isnan(), bad)
    x, dense[7, 7] = torch.randn(40, 30).to(dtype), NAN
    for result in run(implementation, x, dense, gamma=gamma):
        assert result.isnan().nonzero().tolist() == [[7, 7]]
    total = implementation.module.sigmoid_focal_loss(x, dense, gamma=gamma, reduction="sum")
    assert total.isnan()


@implementations
@dtypes
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore_index", [-2, -1, 3, 255])
def test_ignored_rows_give_exactly_nothing_whatever_their_logits_and_weights(ignore_index: int, reduction: str, dtype: torch.dtype, implementation: Implementation) -> None:
    x, ids = torch.randn(12, 5).to(dtype), torch.tensor([0, 5, 4, 1] * 3)
    ids[2:9] = ignore_index
    weight = torch.rand(12, 5)
    clean = run(implementation, x, ids, reduction=reduction, ignore_index=ignore_index, weight=weight)
    x[2], x[3], x[4], x[5, 0] = NAN, INF, -INF, NAN
    weight[6], weight[7] = INF, NAN
    loss, gradient = run(implementation, x, ids, reduction=reduction, ignore_index=ignore_index, weight=weight)
    assert torch.equal(loss, clean[0]) and torch.equal(gradient, clean[1])
    assert not gradient[2:9].any() and loss.isfinite().all() and gradient[:2].all()
    assert reduction != "none" or not loss[2:9].any()


@implementations
def test_weight_0_multiplies_and_does_not_hide_an_infinite_loss(implementation: Implementation) -> None:
    loss, gradient = run(implementation, torch.tensor([[INF], [2.0]]), torch.tensor([-1, -1]), weight=torch.zeros(1))
    assert loss[0].isnan() and loss[1] == 0 and not gradient.any()


@implementations
@pytest.mark.parametrize("gamma", [1e-300, 1e-40, 1e-3, 0.05, 13.0, 60.0, 1000.0, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_finite_gamma_gives_finite_results_that_fall_with_gamma(dtype: torch.dtype, gamma: float, implementation: Implementation) -> None:
    x = torch.cat([torch.linspace(-120, 120, 961), torch.tensor([-3e38, 3e38, 1e-30])]).to(dtype)[:, None]
    for targets in (torch.full((len(x),), -1), torch.zeros(len(x), dtype=torch.int64), torch.full((len(x), 1), 0.25)):
        loss, gradient = run(implementation, x, targets, alpha=None, gamma=gamma)
        entropy, slope = run(implementation, x, targets, alpha=None, gamma=0.0)
        assert loss.isfinite().all() and gradient.isfinite().all()
        assert (loss <= entropy * 1.00001).all() and (loss >= 0).all()
        if gamma < 1e-30:  # p^gamma is 1 to rounding for every p that is not 0
            assert torch.allclose(loss, entropy, rtol=1e-6) and torch.allclose(gradient, slope, rtol=1e-5)


@implementations
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 1.7])
def test_dense_targets_outside_0_and_1_follow_the_formula_unchecked(gamma: float, implementation: Implementation) -> None:
    x, t = torch.linspace(-6, 6, 97)[:, None].repeat(1, 4), torch.tensor([-0.5, -0.1, 1.2, 2.0]).expand(97, 4)
    want = soft(x.double(), t.double(), gamma)
    loss, gradient = run(implementation, x, t, alpha=None, gamma=gamma)
    settled = (torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t).abs() > 0.02  # near 1 - p_t = 0 there is nothing to compare
    assert settled.sum() > 300
    assert torch.allclose(loss[settled].double(), want.loss[settled], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.allclose(gradient[settled].double(), want.gradient[settled], rtol=1e-4, atol=1e-4, equal_nan=True)
    assert want.loss.isnan().any() == (gamma == 1.7)

# Owns: logits, targets and gammas at and beyond the ends of their ranges: limits, NaN, ignored rows.
# Must not know: accuracy in the middle (test_numerics.py).
from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from cases import EVERY, IMPLEMENTATIONS, Implementation
from family import MEMBERS, SCORED
from formulas import closed, complete, factor_of, soft
from losses import DECLARED
from pairwise import taking_turns
from tolerances import SIGMOID
from torch import Tensor

INF, NAN = math.inf, math.nan
LOGITS = tuple(sign * size for size in (0.0, 17.0, 88.8, 104.0, 120.0, 800.0, 60000.0, 3e38, INF) for sign in (1, -1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


FORMULAS = [(loss.name, dict(options)) for loss in DECLARED.values() for options in loss.settings][::EVERY]


def limit(loss: str, x: float, t: float, parameters: dict[str, Any]) -> tuple[float, float]:
    """Loss and gradient without alpha, with the limits of the formula where the logit is so large that exp(-|x|) is
    0."""
    if abs(x) <= 120:
        exact = closed(loss, torch.tensor([x], dtype=torch.float64), torch.tensor([t], dtype=torch.float64), parameters)
        return float(exact.loss), float(exact.gradient)
    return DECLARED[loss].limit(x, t, complete(loss, parameters))


def run(
    implementation: Implementation, x: Tensor, targets: Any, loss: str = "sigmoid_focal_loss", **options: object
) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    value = getattr(implementation.module, loss)(leaf, targets, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


# Targets by name: of a column of logits, and the value of each.
TARGETS = {
    "background ids": lambda n: (torch.full((n,), -1), 0.0),
    "positive ids": lambda n: (torch.zeros(n, dtype=torch.int64), 1.0),
    "dense 0": lambda n: (torch.zeros(n, 1), 0.0),
    "dense 1": lambda n: (torch.ones(n, 1), 1.0),
    "dense bool": lambda n: (torch.ones(n, 1, dtype=torch.bool), 1.0),
    "dense .25": lambda n: (torch.full((n, 1), 0.25), 0.25),
}


def scored(loss: str, ids: Tensor, score: float) -> Any:
    """Class ids as the loss takes them."""
    return (ids, torch.full(ids.shape, score)) if loss in SCORED and ids.dtype == torch.int64 else ids


@cache
def limits(loss: str, logits: tuple[float, ...], t: float, parameters: tuple[tuple[str, Any], ...]) -> Tensor:
    """Loss and gradient of each logit, alpha included."""
    alpha_t = float(factor_of(loss, torch.tensor([t], dtype=torch.float64), dict(parameters).get("alpha")))
    pairs = [limit(loss, x, t, dict(parameters)) if alpha_t else (0.0, 0.0) for x in logits]
    return torch.tensor(pairs, dtype=torch.float64) * alpha_t if alpha_t else torch.tensor(pairs, dtype=torch.float64)


@implementations
@dtypes
@pytest.mark.parametrize("loss, parameters", FORMULAS, ids=str)
def test_loss_and_gradient_at_extreme_logits_are_their_limits(
    loss: str, parameters: dict[str, Any], dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.tensor(LOGITS, dtype=torch.float64).to(dtype)[:, None]
    # 2^-6: these are limits and magnitudes, rounded to as few as 8 bits. The smallest probabilities are subnormals of
    # one or two bits, which a cross entropy of 120 multiplies; torch.sigmoid of float32 has none. In float64 the root
    # of p is bounded by exp(-400), which 3e38 multiplies.
    lost = (
        (SIGMOID.units if implementation.name == "reference" else 8) * 120 * 2.0**-149
        if dtype != torch.float64
        else 1e-130
    )
    near = {"rtol": 2**-6, "atol": 8 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps + lost}
    for kind, make in TARGETS.items():
        targets, t = make(len(x))
        t = 0.25 if loss in SCORED and kind == "positive ids" else t
        value, gradient = run(implementation, x, scored(loss, targets, t), loss, **parameters)
        got, want = (
            torch.cat([value, gradient], 1),
            limits(loss, tuple(x.flatten().tolist()), t, tuple(parameters.items())).to(dtype),
        )
        off = ~torch.isclose(got.double(), want.double(), **near).all(1)
        assert not off.any(), f"{kind}, x {x[off].tolist()}: got {got[off].tolist()}, want {want[off].tolist()}"


@implementations
@dtypes
@pytest.mark.parametrize(
    "loss, parameters", [row for row in FORMULAS if row[1].get("alpha", 0.25) not in (0.0, 1.0)], ids=str
)
def test_nan_logits_and_targets_show_in_their_own_results_and_nowhere_else(
    loss: str, parameters: dict[str, Any], dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.randn(40, 30).to(dtype)
    dense = torch.rand(40, 30).to(dtype)
    ids = torch.randint(-1, 31, (40,))
    x[3, 4] = x[39, 29] = NAN
    bad = x.isnan()
    for targets in (ids, torch.full((40,), -1), dense, torch.zeros(40, 30)):
        for result in run(implementation, x, scored(loss, targets, 0.7), loss, **parameters):
            assert torch.equal(result.isnan(), bad)
    x, dense[7, 7] = torch.randn(40, 30).to(dtype), NAN
    for result in run(implementation, x, dense, loss, **parameters):
        assert result.isnan().nonzero().tolist() == [[7, 7]]
    assert getattr(implementation.module, loss)(x, dense, reduction="sum", **parameters).isnan()
    if loss in SCORED:
        scores = torch.full((40,), 0.5)
        scores[5] = NAN
        want = torch.zeros(40, 30, dtype=torch.bool)
        want[5, 2], ids[5] = True, 2
        for result in run(implementation, x, (ids, scores), loss, **parameters):
            assert torch.equal(result.isnan(), want)


@implementations
@taking_turns({"reduction": ("none", "sum", "mean")}, ignore_index=(-2, -1, 3, 255), dtype=DTYPES, member=MEMBERS)
def test_ignored_rows_give_exactly_nothing_whatever_their_logits_and_weights(
    member: str, ignore_index: int, reduction: str, dtype: torch.dtype, implementation: Implementation
) -> None:
    loss_of = MEMBERS[member]
    x, ids = torch.randn(12, 5).to(dtype), torch.tensor([0, 5, 4, 1] * 3)
    ids[2:9] = ignore_index
    weight, scores = torch.rand(12, 5), torch.rand(12)
    options = {"reduction": reduction, "ignore_index": ignore_index, "weight": weight, **loss_of.options}
    targets = (ids, scores) if loss_of.loss in SCORED else ids
    clean = run(implementation, x, targets, loss_of.loss, **options)
    x[2], x[3], x[4], x[5, 0] = NAN, INF, -INF, NAN
    weight[6], weight[7], scores[8] = INF, NAN, NAN
    loss, gradient = run(implementation, x, targets, loss_of.loss, **options)
    assert torch.equal(loss, clean[0]) and torch.equal(gradient, clean[1])
    assert not gradient[2:9].any() and loss.isfinite().all() and gradient[:2].any()
    assert reduction != "none" or not loss[2:9].any()


@implementations
def test_weight_0_multiplies_and_does_not_hide_an_infinite_loss(implementation: Implementation) -> None:
    loss, gradient = run(implementation, torch.tensor([[INF], [2.0]]), torch.tensor([-1, -1]), weight=torch.zeros(1))
    assert loss[0].isnan() and loss[1] == 0 and not gradient.any()


@implementations
@pytest.mark.parametrize("gamma", [1e-300, 1e-40, 1e-3, 0.05, 13.0, 60.0, 1000.0, 1e30, 1e300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_any_finite_gamma_gives_finite_results_that_fall_with_gamma(
    dtype: torch.dtype, gamma: float, implementation: Implementation
) -> None:
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
def test_dense_targets_outside_0_and_1_follow_the_formula_unchecked(
    gamma: float, implementation: Implementation
) -> None:
    x, t = torch.linspace(-6, 6, 97)[:, None].repeat(1, 4), torch.tensor([-0.5, -0.1, 1.2, 2.0]).expand(97, 4)
    want = soft(x.double(), t.double(), gamma)
    loss, gradient = run(implementation, x, t, alpha=None, gamma=gamma)
    # near 1 - p_t = 0 there is nothing to compare
    settled = (torch.sigmoid(x) * (1 - t) + torch.sigmoid(-x) * t).abs() > 0.02
    assert settled.sum() > 300
    assert torch.allclose(loss[settled].double(), want.loss[settled], rtol=1e-4, atol=1e-5, equal_nan=True)
    assert torch.allclose(gradient[settled].double(), want.gradient[settled], rtol=1e-4, atol=1e-4, equal_nan=True)
    assert want.loss.isnan().any() == (gamma == 1.7)

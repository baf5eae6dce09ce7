# Owns: the proof of the CUDA kernels' error bounds: their formula on the CPU, with every ex2 and rcp off by what the
# PTX manual allows.
# Must not know: kernels, memory, launches (cuda_host/).
#
# ex2.approx.ftz is at most 2 ULP from the correctly rounded result, rcp.approx.ftz 1 ULP; both flush subnormals to 0.
# Every combination of both extremes is tried, and random errors between them. A unit is 2^-23.
from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cuda_math.emulation import POLICIES, STREAMS, Emulation, Errors, Results, sigmoid_focal, why_impossible
from oracle import hard, soft

UNIT, SMALLEST = 2.0**-23, 2.0**-126
GAMMAS = (0.0, 1.0, 2.0, 0.5, 1.7, 5.0, 6.0, 6.5, 10.0, 50.0, 200.0, 1e3, 1e6)
STEEP = 6.0  # kSteepGamma: above it all logits take the careful path

pytestmark = [pytest.mark.native, pytest.mark.skipif(why_impossible() is not None, reason=str(why_impossible()))]


class Bound(NamedTuple):
    relative: float
    absolute: float  # where a factor of the result is below 2^-126
    why: str


def bound(policy: str, gamma: float) -> Bound:
    if policy.endswith("half"):
        return Bound(2.5e-5, SMALLEST, "1/80 of bfloat16's rounding, 1/20 of float16's")
    if gamma in (0, 1, 2):
        return Bound(16 * UNIT, SMALLEST, "p is off by 4 to 5 units and enters three times")
    return Bound(40 * UNIT, SMALLEST, "3 units of log p times a gamma of up to 6; above, log p in two floats")


def needs(policy: str, gamma: float) -> bool:
    """Half precision takes any other gamma through the single grade, and a steep one takes every logit through the
    careful policy."""
    return policy == "careful" or (gamma <= STEEP and (gamma in (0, 1, 2) or not policy.endswith("half")))


def everywhere(strata: int) -> np.ndarray:
    """Logits in [-100, 100]: as many of every exponent as it has bit patterns, as many evenly spread, and more where
    intermediates underflow."""
    rng = np.random.default_rng(1)
    last = np.float32(100).view(np.int32)
    bits = ((np.arange(strata) + rng.random(strata)) * (float(last) / strata)).astype(np.int32)
    magnitudes = np.concatenate([bits.view(np.float32), np.linspace(0, 100, strata, dtype=np.float32)])
    return np.concatenate([magnitudes, -magnitudes, np.linspace(-90, -86, strata // 16, dtype=np.float32)])


X = everywhere(2**17)
FEW = everywhere(2**15)


class Truth(NamedTuple):
    want: Results
    is_normal: np.ndarray  # the result and its factors are at least 2^-126, and so are the perturbed ones


def truth(x: np.ndarray, gamma: float) -> Truth:
    z = torch.from_numpy(x).double()
    want, p = hard(z, gamma), torch.sigmoid(z)
    least = torch.minimum(torch.minimum(p, p.pow(gamma)), torch.minimum(want.loss, want.gradient))
    return Truth(Results(want.loss.numpy(), want.gradient.numpy()), (least > SMALLEST * (1 + 64 * UNIT)).numpy())


@lru_cache(maxsize=1)
def truth_everywhere(gamma: float) -> Truth:
    return truth(X, gamma)


def every_error(gamma: float, bounds: float = 1.0) -> list[Errors]:
    instructions = 2 if gamma in (0, 1, 2) else 3
    return [Errors(bounds, signs) for signs in range(2**instructions)] + [
        Errors(bounds, 0, seed) for seed in (12345, 67890)
    ]


class Worst(NamedTuple):
    relative: float
    absolute: float  # beyond the relative bound
    at: float


def worst(
    emulation: Emulation, policy: str, gamma: float, x: np.ndarray, exact: Truth, bounds: float = 1.0
) -> dict[str, Worst]:
    """The worst errors of value and gradient over all errors of the instructions. NaN counts as infinitely wrong."""
    runs = (emulation.run(policy, gamma, x, errors) for errors in every_error(gamma, bounds))
    low = high = next(runs)
    for results in runs:
        low = Results(*map(np.minimum, low, results))
        high = Results(*map(np.maximum, high, results))
    found = {}
    for name, lowest, highest, want in zip(Results._fields, low, high, exact.want):
        error = np.nan_to_num(np.maximum(want - lowest, highest - want), nan=np.inf)
        relative = np.where(exact.is_normal, error / np.maximum(want, SMALLEST), 0.0)
        absolute = np.where(exact.is_normal, 0.0, error - bound(policy, gamma).relative * want)
        found[name] = Worst(relative.max(), absolute.max(), float(x[relative.argmax()]))
    return found


def violations(
    emulation: Emulation, policy: str, gamma: float, x: np.ndarray, exact: Truth, bounds: float = 1.0
) -> list[str]:
    allowed = bound(policy, gamma)
    found = worst(emulation, policy, gamma, x, exact, bounds).items()
    relative = [
        f"{name} at {w.at!r}: {w.relative / UNIT:.2f} units" for name, w in found if w.relative > allowed.relative
    ]
    return relative + [f"{name}: absolute error {w.absolute:.2g}" for name, w in found if w.absolute > allowed.absolute]


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    return Emulation(tmp_path_factory.mktemp("emulation"))


@pytest.mark.parametrize("gamma, policy", [(g, p) for g in GAMMAS for p in POLICIES if needs(p, g)])
def test_results_stay_within_their_bound_when_every_instruction_is_off_by_its_own(
    emulation: Emulation, policy: str, gamma: float
) -> None:
    assert len(X) > 5e5
    assert not violations(emulation, policy, gamma, X, truth_everywhere(gamma))


@pytest.mark.parametrize("policy", ["rescue", "single"])
def test_a_steep_gamma_needs_the_careful_policy(emulation: Emulation, policy: str) -> None:
    assert all(violations(emulation, policy, gamma, FEW, truth(FEW, gamma)) for gamma in (20.0, 50.0, 200.0, 1e6))


@pytest.mark.parametrize("gamma", GAMMAS)
def test_two_lanes_give_the_bits_of_one(emulation: Emulation, gamma: float) -> None:
    for one, two in (("single", "packed_single"), ("half", "packed_half")):
        first, second = (emulation.run(policy, gamma, FEW, Errors(0)) for policy in (one, two))
        assert first.value.tobytes() == second.value.tobytes() and first.gradient.tobytes() == second.gradient.tobytes()


def test_the_bounds_hold_too_where_the_compiler_fuses_products_and_sums(tmp_path: Path) -> None:
    """nvcc does by default."""
    fused = Emulation(tmp_path, "-ffp-contract=fast")
    for gamma in GAMMAS:
        exact = truth(FEW, gamma)
        assert not [
            v for policy in POLICIES if needs(policy, gamma) for v in violations(fused, policy, gamma, FEW, exact)
        ]


def soft_targets(count: int) -> np.ndarray:
    """Uniform, near 0, near 1, the ends, and 1 - 2^-18 to 1 - 2^-24."""
    rng = np.random.default_rng(3)
    t = rng.random(count) * 10.0 ** (-7 * (rng.random(count) < 0.5) * rng.random(count))
    t = np.where(rng.random(count) < 0.5, t, 1 - t).astype(np.float32)
    t[::50], t[1::50] = 0, 1
    t[2::50] = 1 - 2.0 ** -rng.integers(18, 25, len(t[2::50]))
    return t


@pytest.mark.parametrize("smoothing", (0.0, 1e-6, 0.1))
@pytest.mark.parametrize("gamma", [g for g in GAMMAS if g <= 200])
def test_soft_targets_stay_within_40_units_of_their_terms(emulation: Emulation, gamma: float, smoothing: float) -> None:
    """u = p (1-t) + q t is off by 4 to 5 units, and gamma multiplies them: above the steep gamma its logarithm is made
    in two floats."""
    x, t = X[::2].copy(), soft_targets(len(X[::2]))
    want = soft(torch.from_numpy(x).double(), torch.from_numpy(t).double(), gamma, smoothing)
    small = SMALLEST * (1 + gamma) * 120  # a power flushed to 0, times gamma ce
    for errors in every_error(gamma):
        got = emulation.run("careful", sigmoid_focal(gamma, smoothing), x, errors, t)
        for result, exact, magnitude in (
            (got.value, want.loss, want.loss),
            (got.gradient, want.gradient, want.magnitude),
        ):
            off = (np.abs(result - exact.numpy()) - small) / np.maximum(magnitude.numpy(), SMALLEST) / UNIT
            assert off.max() <= 40, f"{off.max():.1f} units at x {x[off.argmax()]}, t {t[off.argmax()]}"


@pytest.mark.parametrize("policy", POLICIES)
def test_instructions_four_times_worse_than_documented_are_found(emulation: Emulation, policy: str) -> None:
    exact = truth(FEW, 2.0)
    assert not violations(emulation, policy, 2.0, FEW, exact)
    assert violations(emulation, policy, 2.0, FEW, exact, bounds=4)


def test_a_shorter_polynomial_is_found(tmp_path: Path) -> None:
    planted = Emulation(tmp_path, "-DPLANT_DEGREE_5")
    for gamma in (g for g in GAMMAS if g <= STEEP):
        exact = truth(FEW, gamma)
        assert all(
            violations(planted, policy, gamma, FEW, exact)
            for policy in POLICIES
            if needs(policy, gamma) and "half" not in policy
        )


def beyond() -> np.ndarray:
    """Logits past +-100 of every exponent, infinities, NaN."""
    first, last = (int(np.float32(v).view(np.int32)) for v in (100, 3.4e38))
    magnitudes = np.linspace(first, last, 2**14).astype(np.int32).view(np.float32)
    specials = np.array([np.inf, -np.inf, np.nan, np.nan, 3.4e38, -3.4e38, 1e38, -1e38, 0.0, -0.0], dtype=np.float32)
    return np.concatenate([magnitudes, -magnitudes, specials])


def is_limit(results: Results, x: np.ndarray, relative: float) -> np.ndarray:
    """Where a result is the limit of design: 0 and 0 on the winning side, the logit and 1 on the losing one, NaN for
    NaN."""
    with np.errstate(invalid="ignore"):  # inf - inf
        low = (x <= -100) & (np.abs(results.value) <= SMALLEST) & (np.abs(results.gradient) <= SMALLEST)
        near = (results.value == x) | (np.abs(results.value - x) <= relative * x)
        high = (x >= 100) & near & (np.abs(results.gradient - 1) <= relative)
    return low | high | (np.isnan(x) & np.isnan(results.value) & np.isnan(results.gradient))


@pytest.mark.parametrize(
    "gamma, policy", [*((g, "careful") for g in (*GAMMAS, 1e30)), *((g, "rescue") for g in GAMMAS if g <= STEEP)]
)
def test_far_infinite_and_nan_logits_get_their_limits(emulation: Emulation, policy: str, gamma: float) -> None:
    x = beyond()
    x = x[x != 0]
    for errors in every_error(gamma):
        good = is_limit(emulation.run(policy, gamma, x, errors), x, 16 * UNIT)
        assert good.all(), x[~good][:5]


@pytest.mark.parametrize("gamma, policy", [(g, p) for g in GAMMAS for p in STREAMS if needs(p, g)])
def test_a_stream_shows_what_it_cannot_do_by_a_value_that_is_nan_or_infinite(
    emulation: Emulation, policy: str, gamma: float
) -> None:
    """That is how a kernel knows what to recompute. Half grade: rcp(1) = 1 is taken for granted, see tests/gpu."""
    x = beyond()
    for errors in every_error(gamma):
        errors.one_is_exact = policy.endswith("half")
        results = emulation.run(policy, gamma, x, errors)
        shown = np.isnan(results.value) | (results.value == np.inf)
        fine = shown | is_limit(results, x, 16 * UNIT) | (x == 0)
        assert fine.all(), x[~fine][:5]
        assert shown[np.isnan(x)].all() and not shown[np.abs(x) < 1e37].any()

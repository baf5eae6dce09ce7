# Owns: the proof of the error bounds of the losses beside the plain focal loss, as test_cuda_math.py has it for that
# one.
# Must not know: kernels, memory, launches (cuda_host/).
#
# A unit is 2^-23 of what family.expected calls a result's magnitude: the result, and how far it moves with its logit,
# target and parameters.
from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from cuda_host import family
from cases import EXPONENTS
from cuda_math.emulation import Emulation, Errors, LossParameters, sigmoid_focal, why_impossible
from losses import DECLARED
from test_derivatives import numbers_of
from test_cuda_math import FEW, SMALLEST, STEEP, UNIT, soft_targets
from tolerances import Tolerance

pytestmark = [pytest.mark.native, pytest.mark.skipif(why_impossible() is not None, reason=str(why_impossible()))]
X = FEW[::2].copy()
T = soft_targets(len(X))
FLUSHED = 120 * SMALLEST  # a factor below 2^-126 that is 0, times the cross entropy, gamma or 1 / clip

BOUNDS = {
    "single": Tolerance(
        8, "measured 5.3, of the asymmetric loss: p is off by 4 to 5 units, and how often it enters is in the magnitude"
    ),
    "half": Tolerance(210, "measured 197; 2.5e-5, 1/80 of bfloat16's rounding"),
    "careful": Tolerance(8, "measured 6.0"),
    "dense": Tolerance(
        10, "measured 8.3, of the quality focal loss with beta 1: near p = t both derivatives are right"
    ),
    "dense, steep": Tolerance(
        70, "measured 60 at gamma 30: p (1-t) + q t is four roundings, and gamma multiplies them"
    ),
}


def parameters(formula: str) -> LossParameters:
    loss, options = family.FORMULAS[formula]
    return LossParameters(DECLARED[loss].spec.number, *numbers_of(DECLARED[loss], options))


def exponent(formula: str) -> float:
    """Of the negatives' p."""
    loss, options = family.FORMULAS[formula]
    return float(options[next(name for name in ("gamma", *EXPONENTS[loss]) if name in EXPONENTS[loss])])


@cache
def truth(formula: str, dense: bool) -> family.Expected:
    """Without alpha, of negatives or of soft targets."""
    loss, options = family.FORMULAS[formula]
    x = torch.from_numpy(X).double()[:, None]
    off = None if DECLARED[loss].spec.has_class_alpha else 1.0
    options = {
        **options,
        **({"alpha": off} if DECLARED[loss].spec.alpha else {}),
        "reduction": "none",
        "normalizer": None,
    }
    targets = torch.from_numpy(T).double()[:, None] if dense else torch.zeros_like(x)
    return family.expected(loss, family.Arguments(x, targets, options, torch.ones_like(x)))


def every_error(formula: str) -> list[Errors]:
    options = family.FORMULAS[formula][1]
    instructions = (4 if options.get("clip") else 2) + (
        exponent(formula) not in (0, 1, 2, 4) or "label_smoothing" in options
    )
    return [Errors(1, signs) for signs in range(2**instructions)] + [Errors(1, 0, seed) for seed in (12345, 67890)]


def worst(emulation: Emulation, policy: str, formula: str, dense: bool = False) -> float:
    """Units, over value, gradient and all errors of the instructions. NaN counts as infinitely wrong."""
    loss, exact, found = parameters(formula), truth(formula, dense), 0.0
    for errors in every_error(formula):
        got = emulation.run(policy, loss, X, errors, T if dense else None)
        for result, want, magnitude in zip(got, exact.results, exact.magnitudes):
            off = (
                (np.abs(result - want[:, 0].numpy()) - FLUSHED * (1 + exponent(formula)))
                / np.maximum(magnitude[:, 0].numpy(), SMALLEST)
                / UNIT
            )
            found = max(found, float(np.nan_to_num(off, nan=np.inf).max()))
    return found


@pytest.fixture(scope="module")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    return Emulation(tmp_path_factory.mktemp("emulation"))


def policies(formula: str) -> list[str]:
    options, gamma = family.FORMULAS[formula][1], exponent(formula)
    streams = ["rescue", "single", "packed_single"] if gamma <= STEEP else []
    return [
        "careful",
        *streams,
        *(["half", "packed_half"] if gamma == 2 and not {"clip", "label_smoothing"} & set(options) else []),
    ]


@pytest.mark.parametrize("formula, policy", [(f, p) for f in family.FORMULAS for p in policies(f)])
def test_negatives_stay_within_their_bound(emulation: Emulation, formula: str, policy: str) -> None:
    allowed = BOUNDS["half" if "half" in policy else "single" if "single" in policy else "careful"]
    assert worst(emulation, policy, formula) <= allowed.units


@pytest.mark.parametrize("formula", family.FORMULAS)
def test_dense_targets_stay_within_their_bound(emulation: Emulation, formula: str) -> None:
    allowed = BOUNDS["dense, steep" if exponent(formula) > STEEP else "dense"]
    assert worst(emulation, "careful", formula, dense=True) <= allowed.units


@pytest.mark.parametrize("formula", family.FORMULAS)
def test_two_lanes_give_the_bits_of_one(emulation: Emulation, formula: str) -> None:
    for one, two in (("single", "packed_single"), ("half", "packed_half")):
        first, second = (emulation.run(policy, parameters(formula), X, Errors(0)) for policy in (one, two))
        assert all(a.tobytes() == b.tobytes() for a, b in zip(first, second))


def test_instructions_eight_times_worse_than_documented_are_found(
    emulation: Emulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("test_cuda_math_family.every_error", lambda _: [Errors(8, signs) for signs in range(16)])
    assert worst(emulation, "single", "asymmetric") > BOUNDS["single"].units


@pytest.mark.parametrize("gamma", [1e-15, 0.01, 0.5, 2.0, 3.0, 20.0, 1e30])
def test_a_smoothed_label_counts_nothing_on_the_winning_side_far_away(emulation: Emulation, gamma: float) -> None:
    """p^gamma falls faster than the cross entropy grows."""
    far = np.array([-np.inf, -3e38, -1e30, *([-6e4] if gamma > 1e-3 else [])], dtype=np.float32)
    for policy in ("careful", "rescue") if gamma <= STEEP else ("careful",):
        got = emulation.run(policy, sigmoid_focal(gamma, 0.1), far, Errors(0))
        assert not got.value.any() and not got.gradient.any()

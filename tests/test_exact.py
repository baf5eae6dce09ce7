# Owns: that the compiled oracle of exhaustive.py says what formulas.py and curves.py say, and sees planted errors.
# Must not know: the figures.
from __future__ import annotations

import math

import pytest
import torch
from curves import EDGES, FAMILY, PEER_CURVES, Curve, errors_of, measured
from exact.exact import Exact, why_impossible
from exhaustive import LAST, float32_chunk
from formulas import Closed
from rounding import ulp
from torch import Tensor

CURVES = [curve for curves in FAMILY.values() for curve in curves] + PEER_CURVES
STEP = LAST // 2**14 | 1

pytestmark = [pytest.mark.native, pytest.mark.skipif(why_impossible() is not None, reason=str(why_impossible()))]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Exact:
    return Exact(tmp_path_factory.mktemp("exact"))


def sample(curve: Curve) -> Tensor:
    """Every size of either sign, and a kink's surroundings; not a whole number of the compiled oracle's blocks."""
    kinks = [math.log(p / (1 - p)) for p in (curve.target, dict(curve.options).get("clip")) if p and p < 1]
    near = torch.cat([kink + torch.linspace(-1e-3, 1e-3, 999) for kink in kinks] or [torch.zeros(0)])
    x = torch.cat([float32_chunk(0, STEP, 1), float32_chunk(0, STEP, -1), near])
    return x[: len(x) - (len(x) % 256 == 0)]


def off(got: Tensor, want: Tensor, terms: Tensor) -> float:
    return float(((got - want).abs() / terms.clamp(min=1e-300)).max())


def terms_of(curve: Curve, closed: Closed) -> tuple[Tensor, Tensor]:
    """What curves.measured() counts errors in."""
    if not curve.cancels:
        return closed.loss, closed.gradient.abs()
    return closed.loss if closed.loss_magnitude is None else closed.loss_magnitude, closed.magnitude


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_the_compiled_closed_form_is_that_of_the_formulas(exact: Exact, curve: Curve) -> None:
    x = sample(curve)
    got, want = exact.closed(curve, x), curve.exact(x)
    loss_terms, terms = terms_of(curve, want)
    assert off(got.loss, want.loss, loss_terms) < 1e-12 and off(got.gradient, want.gradient, want.magnitude) < 1e-12
    # Of the terms only the exponent counts; beside a kink they have the digits that p minus target has.
    assert off(got.loss_magnitude, loss_terms, loss_terms) < 1e-9 and off(got.magnitude, terms, terms) < 1e-9


@pytest.mark.parametrize("curve", CURVES, ids=str)
def test_the_compiled_errors_are_those_of_python(exact: Exact, curve: Curve) -> None:
    x = sample(curve)
    values, closed, whole = curve.values(x), exact.closed(curve, x), measured(curve, x)
    found = exact.errors_of(curve, x, *values)
    for what, got, value, terms in zip(found, values, closed, terms_of(curve, closed)):
        errors, again = found[what], errors_of(got, value, terms, x, curve.underflow)
        assert errors._replace(total=0) == again._replace(total=0) and errors.total == pytest.approx(again.total)
        # Python's own terms may be on the other side of a power of two, where a unit doubles.
        assert (errors.count, errors.not_finite) == (len(x), whole[what].not_finite) and errors.worst == pytest.approx(
            whole[what].worst, rel=1e-3
        )
        assert errors.total == pytest.approx(whole[what].total, rel=0.01)


@pytest.mark.parametrize("place", [0, 255, 256, 1000, 1022])
@pytest.mark.parametrize("planted, not_finite", [(3.0, 0), (20.0, 0), (-3e5, 0), (math.nan, 1), (-math.inf, 1)])
def test_a_planted_error_is_seen_with_its_logit_its_bin_and_its_reach(
    exact: Exact, place: int, planted: float, not_finite: int
) -> None:
    curve, x = Curve("sigmoid_focal_loss", 0.0, (("gamma", 2.0),)), torch.linspace(-9, 9, 1023)
    closed = exact.closed(curve, x)
    loss, gradient = closed.loss.float(), closed.gradient.float()
    gradient[place] += planted * ulp(closed.gradient, torch.float32)[place].item()
    found = exact.errors_of(curve, x, loss, gradient)
    assert (
        found["loss"].worst <= 0.5
        and found["loss"].bins[0] == len(x) == found["loss"].count
        and found["loss"].good_below == math.inf
    )
    errors, right = found["gradient"], (len(x) - 1 + not_finite, *[0] * len(EDGES))
    assert errors.not_finite == not_finite and errors.count == sum(errors.bins) == len(x)
    assert errors.good_below == (abs(x[place]).item() if not_finite or abs(planted) > EDGES[-1] else math.inf)
    if not_finite:
        assert errors.worst <= 0.5 and errors.bins == right
    else:
        assert errors.worst == pytest.approx(abs(planted), abs=0.5) and errors.at == x[place].item()
        assert errors.bins[0] == right[0] and sum(errors.bins[1:]) == 1


def test_another_exponent_is_another_closed_form(exact: Exact) -> None:
    x = torch.linspace(-9, 9, 1023)
    curve, other = (Curve("sigmoid_focal_loss", 0.0, (("gamma", gamma),)) for gamma in (2.0, 2.0 + 1e-9))
    want = curve.exact(x)
    assert off(exact.closed(other, x).loss, want.loss, want.loss) > 1e-10

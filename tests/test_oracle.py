# Owns: the proof of the oracles: the float64 reference and the closed forms against the textbook formulas in 50 digits
# and more.
# Must not know: the native library.
from __future__ import annotations

from itertools import product
from typing import Any

import focal_ext
import pytest
import torch
from cases import GAMMAS
from formulas import closed, complete, factor_of, hard, soft, textbook_point
from losses import DECLARED
from rounding import error_in_ulp

# Both sides of 0, of the saturation of sigmoid in float32 (17) and float64 (37), of exp's underflow in float32 (88.8,
# 104).
LOGITS = (
    0.0,
    1e-8,
    0.3,
    -0.3,
    2.0,
    -2.0,
    6.5,
    -6.5,
    17.0,
    -17.0,
    37.5,
    -37.5,
    88.8,
    -88.8,
    104.0,
    -104.0,
    120.0,
    -120.0,
)
TARGETS = (0.0, 1.0, 0.5, 0.3, 0.9999, 1e-7)

# Units of 2^-52 of the terms' magnitudes. sigmoid, logsigmoid and pow are off by about a unit each, and u^5 multiplies
# the roundings of u by five. A gradient has a term more, and a reference that differentiates the steps one by one
# rounds twice as often.
LOSS_UNITS, CLOSED_UNITS, AUTOGRAD_UNITS = 8, 8, 16

FORMULAS = [(loss.name, dict(options)) for loss in DECLARED.values() for options in loss.settings]


@pytest.mark.parametrize("loss, parameters", FORMULAS, ids=str)
def test_reference_and_closed_form_in_float64_are_the_textbook_formula(loss: str, parameters: dict[str, Any]) -> None:
    has_kink = loss == "quality_focal_loss" and parameters["beta"]  # at (0, 0.5): test_corners.py
    points = [point for point in product(LOGITS, TARGETS) if not (has_kink and point == (0.0, 0.5))]
    options = complete(loss, parameters)
    x, t = (torch.tensor(each, dtype=torch.float64) for each in zip(*points))
    want = torch.tensor([textbook_point(loss, *point, **options) for point in points], dtype=torch.float64).unbind(-1)
    leaf = x[:, None].requires_grad_()
    value = getattr(focal_ext.reference, loss)(leaf, t[:, None], **options)
    reference = value.detach()[:, 0], torch.autograd.grad(value.sum(), leaf)[0][:, 0]
    by_hand, factor = closed(loss, x, t, options), factor_of(loss, t, options.get("alpha"))
    terms = by_hand.loss if by_hand.loss_magnitude is None else by_hand.loss_magnitude
    rooms = [torch.finfo(torch.float64).eps * factor * each + 1e-300 for each in (terms, by_hand.magnitude)]
    for got, units in (
        (reference, (LOSS_UNITS, AUTOGRAD_UNITS)),
        ((by_hand.loss * factor, by_hand.gradient * factor), (CLOSED_UNITS, CLOSED_UNITS)),
    ):
        for ours, exact, unit, room in zip(got, want, units, rooms):
            off = (ours - exact).abs() > unit * room
            assert not off.any(), [point for point, is_off in zip(points, off) if is_off]


@pytest.mark.parametrize("gamma", GAMMAS)
def test_closed_form_of_hard_targets_is_the_soft_one_at_0_and_mirrored_at_1(gamma: float) -> None:
    z = torch.linspace(-110, 110, 4001, dtype=torch.float64)
    low = hard(z, gamma)
    for x, t, sign in ((z, 0.0, 1), (-z, 1.0, -1)):
        general = soft(x, torch.full_like(z, t), gamma)
        assert error_in_ulp(general.loss, low.loss).max() <= 2
        assert error_in_ulp(sign * general.gradient, low.gradient).max() <= 4


def test_textbook_evaluation_is_itself_exact_where_a_value_is_known() -> None:
    log2 = 0.6931471805599453
    assert textbook_point("sigmoid_focal_loss", 0.0, 0.0, gamma=2.0) == pytest.approx(
        (log2 / 4, 0.25 * log2 + 0.125), rel=1e-15
    )
    assert textbook_point("sigmoid_focal_loss", 0.0, 0.5, alpha=0.5, gamma=0.0) == pytest.approx(
        (log2 / 2, 0.0), abs=1e-15
    )
    # exp(-240)
    assert textbook_point("sigmoid_focal_loss", -120.0, 0.0, gamma=1.0)[0] == pytest.approx(5.8792154e-105, rel=1e-7)
    assert textbook_point("quality_focal_loss", 0.0, 1.0, beta=2.0) == pytest.approx(
        (log2 / 4, -0.25 * log2 - 0.125), rel=1e-15
    )
    assert textbook_point("varifocal_loss", 0.0, 0.5, alpha=0.75, gamma=2.0) == pytest.approx(
        (log2 / 2, 0.0), abs=1e-15
    )
    # -log .75
    assert textbook_point("asymmetric_loss", 0.0, 0.0, gamma_neg=2.0, gamma_pos=1.0, clip=0.25)[0] == pytest.approx(
        0.0625 * 0.2876820724517809, rel=1e-15
    )

# Owns: the proof of the oracles: the float64 reference and the closed form against the textbook formula in 50 digits and more.
# Must not know: the native library.
from __future__ import annotations

import focal_ext
import pytest
import torch
from cases import GAMMAS
from oracle import hard, soft, textbook_point
from rounding import error_in_ulp

# Both sides of 0, of the saturation of sigmoid in float32 (17) and float64 (37), of exp's underflow in float32 (88.8, 104).
LOGITS = (0.0, 1e-8, 0.3, -0.3, 2.0, -2.0, 6.5, -6.5, 17.0, -17.0, 37.5, -37.5, 88.8, -88.8, 104.0, -104.0, 120.0, -120.0)
TARGETS = (0.0, 1.0, 0.5, 0.3, 0.9999, 1e-7)
ALPHAS = {0.0: 0.25, 1.0: None, 0.5: 0.25, 0.3: 0.75, 0.9999: None, 1e-7: 0.0}

# Units of 2^-52 of the terms' magnitudes. sigmoid, logsigmoid and pow are off by about a unit each, and u^5 multiplies the roundings of u by
# five. Autograd differentiates sigmoid as y (1-y), where 1-y is off by half a unit of 1: times gamma x <= 5 * 37 on the losing side.
LOSS_UNITS, CLOSED_UNITS, AUTOGRAD_UNITS = 8, 8, 93


@pytest.mark.parametrize("gamma", GAMMAS)
def test_reference_and_closed_form_in_float64_are_the_textbook_formula(gamma: float) -> None:
    points = [(x, t) for x in LOGITS for t in TARGETS]
    x, t = (torch.tensor(axis, dtype=torch.float64) for axis in zip(*points))
    x.requires_grad_()
    alpha_t = torch.tensor([1.0 if ALPHAS[at] is None else ALPHAS[at] * at + (1 - ALPHAS[at]) * (1 - at) for _, at in points], dtype=torch.float64)
    losses = torch.cat([focal_ext.reference.sigmoid_focal_loss(x[i, None], t[i, None], ALPHAS[at], gamma) for i, (_, at) in enumerate(points)])
    (gradients,) = torch.autograd.grad(losses.sum(), x)
    losses = losses.detach()
    closed = soft(x.detach(), t, gamma)

    for i, (logit, target) in enumerate(points):
        loss, gradient = textbook_point(logit, target, ALPHAS[target], gamma)
        near, tiny = torch.finfo(torch.float64).eps, 1e-300
        room, slope_room = near * abs(loss) + tiny, near * float(closed.magnitude[i] * alpha_t[i]) + tiny
        where = f"x {logit}, t {target}"
        assert abs(float(losses[i]) - loss) <= LOSS_UNITS * room, where
        assert abs(float(gradients[i]) - gradient) <= AUTOGRAD_UNITS * slope_room, where
        assert abs(float(closed.loss[i] * alpha_t[i]) - loss) <= CLOSED_UNITS * room, where
        assert abs(float(closed.gradient[i] * alpha_t[i]) - gradient) <= CLOSED_UNITS * slope_room, where


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
    assert textbook_point(0.0, 0.0, None, 2.0) == pytest.approx((log2 / 4, 0.25 * log2 + 0.125), rel=1e-15)
    assert textbook_point(0.0, 0.5, 0.5, 0.0) == pytest.approx((log2 / 2, 0.0), abs=1e-15)
    assert textbook_point(-120.0, 0.0, None, 1.0)[0] == pytest.approx(5.8792154e-105, rel=1e-7)  # exp(-240)

# Owns: second and third derivatives of the reference, which create_graph=True and torch.func reach, against the
# textbook formulas.
# Must not know: the native library; values and first derivatives (test_oracle.py).
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import focal_ext
import mpmath
import pytest
import torch
from losses import DECLARED
from torch import Tensor

# Powers of what underflows, where a factor of infinity meets a 0: from 88 on in float32, from 709 on in float64.
LOGITS = (0.3, -2.0, 40.0, -40.0, 100.0, -100.0, 720.0, -720.0)
GAMMAS = (0.0, 0.5, 1.5, 2.0, 20.0)


def options_of(loss: str, gamma: float, live: bool) -> dict[str, Any]:
    """Every exponent as given, no clip, which is a kink; all else as everyday."""
    kinds: dict[str, Any] = {
        "exponent": gamma,
        "exponent from 1": max(gamma, 1.0),
        "alpha": None,
        "clip": None,
        "flag": live,
    }
    return {name: kinds.get(kind, DECLARED[loss].parameters[name][0]) for name, kind in DECLARED[loss].drawn.items()}


ROWS = [
    (loss, gamma, live)
    for loss in DECLARED
    for gamma in GAMMAS
    for live in (True, False)
    if live or "modulator_gradient" in DECLARED[loss].parameters
]
# Relative: each order differentiates a product of three factors, whose terms add up to at most (2 gamma + |x|)^3 times
# their sum's size.
RELATIVE = {torch.float64: 1e-9, torch.float32: 2e-3}
SUBNORMAL = {torch.float64: 1e-300, torch.float32: 1e-36}  # below it digits are lost to underflow on the way


def orders(function: Callable[[Tensor], Tensor], x: Tensor) -> list[float]:
    """The second and third derivatives of a number with respect to one logit."""
    derivatives, value = [], function(x)
    for _ in range(3):
        (value,) = torch.autograd.grad(value, x, create_graph=True)
        derivatives.append(float(value.detach()))
    return derivatives[1:]


def exact_orders(function: Callable[[Any], Any], x: float) -> list[float]:
    with mpmath.workdps(80 + int(abs(x))):  # 1 - p has lost 0.43 |x| digits
        return [float(mpmath.diff(function, mpmath.mpf(x), n, h=mpmath.mpf(10) ** -15)) for n in (2, 3)]


def compare(got: list[float], exact: list[float], dtype: torch.dtype, where: str) -> None:
    for a, b in zip(got, exact):
        assert abs(a - b) <= RELATIVE[dtype] * abs(b) + SUBNORMAL[dtype], (where, got, exact)


@pytest.mark.parametrize("loss, gamma, live", ROWS)
def test_second_and_third_derivatives_of_hard_targets_are_the_textbook_formulas(
    loss: str, gamma: float, live: bool
) -> None:
    options = options_of(loss, gamma, live)
    for logit in LOGITS:
        for target in (0.0, 1.0):
            t = mpmath.mpf(target)
            y = mpmath.mpf(logit)
            exact = exact_orders(lambda z, t=t, y=y: DECLARED[loss].textbook(z, y, t, **options), logit)
            for dtype in RELATIVE:
                x, dense = torch.tensor(logit, dtype=dtype, requires_grad=True), torch.tensor([target], dtype=dtype)
                got = orders(
                    lambda z, dense=dense: getattr(focal_ext.reference, loss)(
                        z[None], dense, reduction="sum", **options
                    ),
                    x,
                )
                compare(got, exact, dtype, f"x {logit}, target {target}, {dtype}")


def softmax(row: list[Any], label: int, gamma: float) -> Any:
    total = sum(mpmath.exp(z) for z in row)
    p = mpmath.exp(row[label]) / total
    return -((1 - p) ** gamma) * mpmath.log(p)


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_second_and_third_derivatives_of_softmax_are_the_textbook_formulas(gamma: float, label: int) -> None:
    for logit in LOGITS:
        exact = exact_orders(lambda z: softmax([z, mpmath.mpf("0.5"), mpmath.mpf(-1)], label, gamma), logit)
        for dtype in RELATIVE:
            x, rest = torch.tensor(logit, dtype=dtype, requires_grad=True), torch.tensor([0.5, -1], dtype=dtype)
            got = orders(
                lambda z, rest=rest: focal_ext.reference.softmax_focal_loss(
                    torch.cat([z[None], rest])[None], torch.tensor([label]), gamma=gamma, reduction="sum"
                ),
                x,
            )
            compare(got, exact, dtype, f"x {logit}, {dtype}")

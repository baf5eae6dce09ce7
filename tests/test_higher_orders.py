# Owns: second and third derivatives of the reference, which create_graph=True and torch.func reach, against the
# textbook formulas.
# Must not know: the native library; values and first derivatives (test_oracle.py).
from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
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


def orders(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The second and third derivatives of a sum with respect to each logit, which no other's term knows."""
    derivatives, value = [], function(x)
    for _ in range(3):
        (value,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        derivatives.append(value.detach())
    return torch.stack(derivatives[1:], -1)


def exact_orders(function: Callable[[Any], Any], x: float) -> list[float]:
    # 1 - p loses 0.43 |x| digits and the steps 30 or 45, of three and four times as many as mpmath is asked for
    with mpmath.workdps(40 + int(abs(x)) // 4):
        return [float(mpmath.diff(function, mpmath.mpf(x), n, h=mpmath.mpf(10) ** -15)) for n in (2, 3)]


def compare(got: Tensor, exact: list[list[float]], where: list[Any]) -> None:
    want = torch.tensor(exact, dtype=torch.float64)
    off = ~((got.double() - want).abs() <= RELATIVE[got.dtype] * want.abs() + SUBNORMAL[got.dtype]).all(-1)
    assert not off.any(), [(*place, *a) for place, *a, is_off in zip(where, got.tolist(), exact, off) if is_off]


@pytest.mark.parametrize("loss, gamma, live", ROWS)
def test_second_and_third_derivatives_of_hard_targets_are_the_textbook_formulas(
    loss: str, gamma: float, live: bool
) -> None:
    options, points = options_of(loss, gamma, live), list(itertools.product(LOGITS, (0.0, 1.0)))

    def along(y: Any, t: Any, z: Any) -> Any:
        return DECLARED[loss].textbook(z, y, t, **options)

    exact = [exact_orders(partial(along, mpmath.mpf(x), mpmath.mpf(t)), x) for x, t in points]
    for dtype in RELATIVE:
        x, t = (torch.tensor(each, dtype=dtype)[:, None] for each in zip(*points))
        got = orders(lambda z, t=t: getattr(focal_ext.reference, loss)(z, t, **options), x.requires_grad_())
        compare(got[:, 0], exact, [(*point, dtype) for point in points])


def softmax(row: list[Any], label: int, gamma: float) -> Any:
    total = sum(mpmath.exp(z) for z in row)
    p = mpmath.exp(row[label]) / total
    return -((1 - p) ** gamma) * mpmath.log(p)


@pytest.mark.parametrize("label", (0, 1))
@pytest.mark.parametrize("gamma", GAMMAS)
def test_second_and_third_derivatives_of_softmax_are_the_textbook_formulas(gamma: float, label: int) -> None:
    exact = [exact_orders(lambda z: softmax([z, mpmath.mpf("0.5"), mpmath.mpf(-1)], label, gamma), x) for x in LOGITS]
    for dtype in RELATIVE:
        rest = torch.tensor([0.5, -1], dtype=dtype).expand(len(LOGITS), 2)
        ids = torch.full((len(LOGITS),), label)
        got = orders(
            lambda z, rest=rest, ids=ids: focal_ext.reference.softmax_focal_loss(
                torch.cat([z[:, None], rest], 1), ids, gamma=gamma, reduction="none"
            ),
            torch.tensor(LOGITS, dtype=dtype).requires_grad_(),
        )
        compare(got, exact, [(x, dtype) for x in LOGITS])

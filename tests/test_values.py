# Owns: every row of the table of cases, loss and gradient, against the float64 reference, for every implementation.
# Must not know: formulas.
from __future__ import annotations

from functools import lru_cache

import pytest
import torch
from cases import CASES, ON_DEVICES, Call, Case, Implementation, build
from oracle import Expected, expected
from rounding import outside, ulp
from tolerances import EXPONENT, FLUSHED, SIGMOID, SUBNORMAL, STORED, units
from torch import Tensor


def slack(
    implementation: Implementation, case: Case, call: Call, want: Expected, kind: str, magnitude: Tensor
) -> Tensor:
    """How far off each element may be before its last rounding, as the tables of tolerances say."""
    dtype = call.inputs.dtype
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    relative = torch.full_like(magnitude, units(implementation.name, dtype, kind))
    if kind != "sum":
        relative = torch.where(want.is_soft, units(implementation.name, dtype, "soft"), relative)
    if accumulation == torch.float64:
        relative = (
            relative + EXPONENT.units * torch.finfo(dtype).eps * max(case.exponents) * call.inputs.double().abs().amax()
            if call.inputs.numel()
            else relative
        )
    lost = (
        FLUSHED
        if implementation.name == "cuda"
        else SIGMOID
        if implementation.name == "reference" and accumulation == torch.float32
        else SUBNORMAL
    )
    absolute = lost.units * torch.finfo(accumulation).smallest_normal * torch.finfo(accumulation).eps
    steepest = (1 + max(case.exponents)) * case.steepest_term * (1 + want.factor.max()) if want.factor.numel() else 1.0
    return relative * magnitude + absolute * steepest * max(1, magnitude.numel() if kind == "sum" else 1)


def rounded_before_grad_output(gradient: Tensor, factor: float, dtype: torch.dtype) -> Tensor:
    stored = gradient / factor
    exact = (gradient.abs() > torch.finfo(dtype).smallest_normal) & (factor == 0.5) | (factor == 1.0)
    return torch.where(exact, 0.0, STORED.units * ulp(stored, dtype) * factor)


def message(case: Case, what: str, got: Tensor, want: Tensor, bad: Tensor) -> str:
    at = tuple(bad.nonzero()[0].tolist())
    return (
        f"{case}: {int(bad.sum())} of {bad.numel()} {what} are off; the first at {at}: got {got[at].item()!r}, "
        f"want {want[at].item()!r}"
    )


@lru_cache(maxsize=1)  # the implementations of a row follow each other
def exact(case: Case) -> tuple[Call, Expected]:
    call = build(case)
    return call, expected(call, case.loss)


@pytest.mark.parametrize("implementation", ON_DEVICES, ids=lambda i: f"{i.module.__name__} {i.name}")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_are_those_of_the_float64_reference(case: Case, implementation: Implementation) -> None:
    call, want = exact(case)
    loss, gradient = (result.cpu() for result in build(case, implementation.device).run(implementation, case.loss))

    assert loss.shape == want.loss.shape and gradient.shape == call.inputs.shape
    assert gradient.dtype == call.inputs.dtype
    narrow = call.inputs.dtype in (torch.bfloat16, torch.float16)
    assert loss.dtype == (torch.float32 if narrow and case.reduction != "none" else call.inputs.dtype)

    off = outside(
        loss,
        want.loss,
        slack(implementation, case, call, want, "hard" if case.reduction == "none" else "sum", want.loss_magnitude),
    )
    assert not off.any(), message(case, "losses", loss, want.loss, off)
    room = slack(implementation, case, call, want, "hard", want.gradient_magnitude)
    if implementation.name != "reference" and case.reduction != "none" and case.dtype != "float16":
        room = room + rounded_before_grad_output(want.gradient, float(call.upstream), gradient.dtype)
    off = outside(gradient, want.gradient, room)
    assert not off.any(), message(case, "gradients", gradient, want.gradient, off)

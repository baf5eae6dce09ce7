# Owns: rounding float64 results to a dtype once, and distances in units in the last place.
# Must not know: losses.
#
# torch rounds float64 to bfloat16 and float16 by way of float32, twice; an oracle must round once.
from __future__ import annotations

import torch
from torch import Tensor

# Bits of the significand, exponent of the smallest subnormal.
FORMATS = {torch.float64: (53, -1074), torch.float32: (24, -149), torch.bfloat16: (8, -133), torch.float16: (11, -24)}


def ulp(values: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance between neighbours of `dtype` around float64 values, as float64; the subnormal distance below the
    normal range."""
    bits, smallest = FORMATS[dtype]
    power_of_two = (values.view(torch.int64) & 0x7FF0000000000000).view(torch.float64)  # the exponent alone
    return (power_of_two * 2.0 ** (1 - bits)).clamp(min=2.0**smallest)


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values rounded once to `dtype`, half to even, overflow to infinity; as float64."""
    if dtype == torch.float64:
        return values
    unit = ulp(values, dtype)
    result = torch.where(values.isfinite(), (values / unit).round() * unit, values)
    largest = torch.finfo(dtype).max
    return torch.where(result.abs() > largest, result.sign() * torch.inf, result)


def error_in_ulp(got: Tensor, want: Tensor) -> Tensor:
    """|got - want| in units in the last place of got's dtype, at float64 values `want`; infinite where only one of them
    is finite or NaN."""
    same = (got.double() == want) | (got.isnan() & want.isnan())
    error = (got.double() - want).abs() / ulp(want, got.dtype)
    return torch.where(same, 0.0, error.nan_to_num(nan=torch.inf, posinf=torch.inf))


def outside(got: Tensor, want: Tensor, slack: Tensor) -> Tensor:
    """Where `got` is not the rounding of some value within `slack` of the float64 value `want`: the tightest test of
    any dtype."""
    low, high = rounded(want - slack, got.dtype), rounded(want + slack, got.dtype)
    inside = (low <= got.double()) & (got.double() <= high)
    return ~torch.where(want.isfinite(), inside, (got.double() == want) | (got.isnan() & want.isnan()))

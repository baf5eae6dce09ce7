# Owns: how far off a result may be: one table, each row with the reason for its size.
# Must not know: cases, implementations' code.
#
# An error is measured in units of the accumulation type's epsilon (2^-23 for float32, bfloat16 and float16 logits,
# 2^-52 for float64), relative to the sum of the magnitudes of the terms that make the value; the result's own last
# rounding comes on top.
from __future__ import annotations

from typing import NamedTuple

import torch


class Tolerance(NamedTuple):
    units: float
    why: str


TOLERANCES = {
    ("native", "float32", "hard"): Tolerance(
        16,
        "13 ULP is the claim for the bare formula; alpha, weight and scale are three products of two roundings of "
        "half a unit",
    ),
    ("native", "float32", "soft"): Tolerance(
        26, "24 units is the claim for the bare formula; alpha_t, weight and scale add four roundings of half a unit"
    ),
    ("native", "float32", "sum"): Tolerance(
        40,
        "each term is off by at most 24 units, and a lane adds at most 8 terms in float32, half a unit each; all else "
        "is double",
    ),
    ("native", "bfloat16", "hard"): Tolerance(
        103, "100 units is the claim for the bare formula; alpha, weight and scale as for float32"
    ),
    ("native", "float16", "hard"): Tolerance(103, "as for bfloat16"),
    ("native", "bfloat16", "soft"): Tolerance(
        180,
        "a scan of logits and targets found 174, at gamma 5 and targets 2^-24 from 0 or 1; alpha_t, weight and scale "
        "add four roundings of half a unit",
    ),
    ("native", "float16", "soft"): Tolerance(180, "as for bfloat16"),
    ("native", "bfloat16", "sum"): Tolerance(
        212,
        "each term is off by at most 180 units, and a lane adds at most 64 terms in float32, where they are looked "
        "up, half a unit each",
    ),
    ("native", "float16", "sum"): Tolerance(212, "as for bfloat16"),
    ("native", "float64", "hard"): Tolerance(
        16, "libm's exp and log1p are off by half a unit each, the formula multiplies and adds a dozen times"
    ),
    ("native", "float64", "soft"): Tolerance(
        24,
        "as for hard targets, and u = p (1-t) + q t is raised to gamma <= 5, which multiplies its two roundings by "
        "five",
    ),
    ("native", "float64", "sum"): Tolerance(
        40, "each term is off by at most 24 units, and a lane adds at most 8 terms in double, half a unit each"
    ),
    ("native", "float32", "softmax"): Tolerance(
        24,
        "10.1 units were the worst of 7,000,000 gradients at gamma 0 to 5, mostly u^5; alpha, weight, divisor and "
        "upstream are four products of half a unit, sums over 2048 classes add up to 8",
    ),
    ("native", "float32", "softmax sum"): Tolerance(
        40, "each row is off by at most 24 units; sums over 512 classes are float32, all others double"
    ),
    ("native", "float64", "softmax"): Tolerance(
        40, "libm is off by half a unit each; a sum of up to 512 exponentials in 16 lanes by up to 18"
    ),
    ("native", "float64", "softmax sum"): Tolerance(48, "as each row"),
    ("reference", "float32", "softmax"): Tolerance(
        96,
        "x - max is rounded, which costs exp(x - max) half of |x - max| <= 100 units; autograd's derivative of 1 - p "
        "has two terms that nearly cancel beside the label",
    ),
    ("reference", "float32", "softmax sum"): Tolerance(96, "as each row"),
    ("reference", "float64", "softmax"): Tolerance(40, "as in float32, with |x - max| counted apart"),
    ("reference", "float64", "softmax sum"): Tolerance(40, "as each row"),
    ("cuda", "float32", "hard"): Tolerance(
        20,
        "test_cuda_math.py proves 16 units for gamma 0, 1, 2 and finds 16.3 up to gamma 5; alpha, weight, divisor and "
        "grad_output are four products of half a unit",
    ),
    ("cuda", "float32", "soft"): Tolerance(34, "test_cuda_math.py proves 32 units; the same four products"),
    ("cuda", "float32", "sum"): Tolerance(
        110,
        "each term is off by at most 34 units, and a lane adds at most 128 terms of these cases' tiles, a warp and a "
        "block 8 sums more, half a unit each",
    ),
    ("cuda", "bfloat16", "hard"): Tolerance(
        212, "the half grade is off by 2.5e-5, 210 units, in test_cuda_math.py; the same four products"
    ),
    ("cuda", "float16", "hard"): Tolerance(212, "as for bfloat16"),
    ("cuda", "bfloat16", "sum"): Tolerance(290, "each term is off by at most 212 units; the sums are those of float32"),
    ("cuda", "float16", "sum"): Tolerance(290, "as for bfloat16"),
    ("cuda", "float64", "hard"): Tolerance(
        24,
        "CUDA's exp and log1p are off by one unit each, where libm's are by half a unit: half as much again as the "
        "native row",
    ),
    ("cuda", "float64", "soft"): Tolerance(36, "CUDA's pow is off by two units; half as much again as the native row"),
    ("cuda", "float64", "sum"): Tolerance(110, "each term is off by at most 36 units; the sums are those of float32"),
    ("cuda", "float32", "softmax"): Tolerance(
        44,
        "an exponential is off by 7 units on a chip whose ex2 is off by 2; u^5 five times as much, and the factors of "
        "the CPU's row",
    ),
    ("cuda", "float32", "softmax sum"): Tolerance(64, "as each row, and a lane adds up to 40 rows of these shapes"),
    ("cuda", "float64", "softmax"): Tolerance(
        60,
        "CUDA's exp and log are off by one unit each, where libm's are by half a unit: half as much again as the "
        "native row",
    ),
    ("cuda", "float64", "softmax sum"): Tolerance(72, "as each row"),
    ("reference", "float32", "hard"): Tolerance(
        112,
        "p^gamma = exp(gamma log p), |gamma log p| < 88: gamma as a float32 costs up to 44 units, log p and the "
        "product, next to 64, 32 each",
    ),
    ("reference", "float32", "soft"): Tolerance(
        64,
        "torch.pow is exact to a unit or two, but takes gamma as a float32: up to 44 units where u^gamma is near "
        "2^-126",
    ),
    ("reference", "float32", "sum"): Tolerance(
        120,
        "torch.sum adds pairwise in float32: log2(n) < 17 roundings of half a unit, after terms that are off by at "
        "most 112 units",
    ),
    ("reference", "float64", "hard"): Tolerance(16, "the same code as the oracle, which may add in another order"),
    ("reference", "float64", "soft"): Tolerance(16, "the same code as the oracle, which may add in another order"),
    ("reference", "float64", "sum"): Tolerance(16, "the same code as the oracle, which may add in another order"),
}

# Results that underflow on the way: float32 intermediates are rounded at 2^-149 before factors, gamma and ce multiply
# them again.
SUBNORMAL = Tolerance(4, "e, p, p^gamma and the product are each rounded once at the smallest subnormal")
FLUSHED = Tolerance(
    2.0**24,
    "ex2 and rcp flush what is below 2^-126, which is 2^23 smallest subnormals, to 0: at most twice on the way to a "
    "result",
)
SIGMOID = Tolerance(
    2.0**21,
    "torch.sigmoid of float32 is 1 / (1 + exp(-x)), which is 0 where exp(-x) overflows: from x = -88.8 on, where it "
    "should be 2^-128",
)
EXPONENT = Tolerance(
    2,
    "rounding y in exp(y) costs |y| half units: in float64 a power p^gamma = exp(gamma log p) and the oracle each pay "
    "it",
)
STORED = Tolerance(
    0.5,
    "a gradient computed beside the loss is rounded to the logits' dtype before grad_output multiplies it, unless "
    "that is exact: half a ULP",
)


def units(implementation: str, dtype: torch.dtype, kind: str) -> float:
    """The row's tolerance as a relative error."""
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    names = (str(d).removeprefix("torch.") for d in (dtype, accumulation))  # the logits' own row where there is one
    row = next(TOLERANCES[key] for name in names if (key := (implementation, name, kind)) in TOLERANCES)
    return row.units * torch.finfo(accumulation).eps


# The claims of the README about the bare formula: no alpha, weight or normaliser.
CLAIMS = {
    ("native", "hard"): Tolerance(
        13,
        "ULP: the worst over every float32 in [-120, 120] and gamma 0 to 5 is the gradient at gamma 5; exhaustive.py "
        "asks for it",
    ),
    ("native", "mean"): Tolerance(
        1.3, "ULP: most patterns are tiny logits, where a result is the rounding of a constant"
    ),
    ("native", "score"): Tolerance(
        24, "ULP: a score of 1 takes the formula of soft targets, whose u^5 is five times as far off as u"
    ),
    ("native", "terms"): Tolerance(
        24, "ULP of the terms' sum, of scores, smoothed labels and clipped probabilities: as for soft targets"
    ),
    ("native", "stored half"): Tolerance(
        0.55, "ULP: half of one is the rounding; 100 units of 2^-23 are 0.003 ULP of bfloat16 and 0.03 of float16"
    ),
    ("native", "half"): Tolerance(
        100, "units of 2^-23: 93 found at gamma 3; 2^x is off by 2^-18.4, log1p by 2^-19.9, and p^gamma multiplies"
    ),
    ("native", "soft"): Tolerance(
        24, "units of 2^-23 of the terms: u is four roundings, u^5 five times as much, the terms a dozen more"
    ),
    ("reference", "hard"): Tolerance(32, "ULP: see TOLERANCES"),
    ("reference", "mean"): Tolerance(1.3, "ULP: as for the native library"),
    ("reference", "half"): Tolerance(32, "units of 2^-23: computed in float32"),
    ("reference", "soft"): Tolerance(32, "units of 2^-23: see TOLERANCES"),
    ("torch.bfloat16", "correctly rounded"): Tolerance(
        0.999, "share: 100 units move a result across a rounding boundary once in 2^16 / 100 / 2 values"
    ),
    ("torch.float16", "correctly rounded"): Tolerance(
        0.995, "share: float16 has 3 bits more, so a boundary is 8 times as near"
    ),
}


def claim(family: str, dtype: torch.dtype, cancels: bool) -> Tolerance:
    """The claim about a curve of one logit (curves.py)."""
    if dtype != torch.float32:
        return CLAIMS["native", "stored half"]
    return CLAIMS["native", "terms" if cancels else "score" if family == "quality focal" else "hard"]

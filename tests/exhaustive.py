# Owns: the proof of the ULP claim over every float32 in [-120, 120], run by `make exhaustive`; pytest does not collect it.
# Must not know: anything but the bare formula: hard labels, no alpha, not reduced.
"""Compares the native library with float64 at every float32 logit in [-120, 120], positive and negative, loss and gradient.

Prints the worst error in ULP with its logit, the mean over all bit patterns and the number of NaN and infinite results, and exits with 1
when the worst passes 13 ULP, a mean 1.3, or a result is not finite. Minutes per gamma on two cores.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import focal_ext
import torch
from conftest import why_not_under_test
from oracle import hard
from rounding import ulp
from tolerances import CLAIMS
from torch import Tensor
from tqdm import tqdm

CHUNK = 2**17  # the oracle's float64 buffers stay in the second-level cache
LAST = 1123024896  # the bit pattern of float32 120
GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 5.0)


class Errors(NamedTuple):
    """What is kept of the errors of many logits."""

    worst: float = 0.0
    at: float = 0.0
    total: float = 0.0
    count: int = 0
    not_finite: int = 0

    def __add__(self, other: Errors) -> Errors:  # type: ignore[override]
        worst = max(self, other)
        return Errors(worst.worst, worst.at, self.total + other.total, self.count + other.count, self.not_finite + other.not_finite)

    @property
    def mean(self) -> float:
        return self.total / self.count


def errors_of(got: Tensor, want: Tensor, logits: Tensor) -> Errors:
    finite = got.isfinite()
    error = torch.where(finite, (got.double() - want).abs() / ulp(want, torch.float32), 0.0)
    at = int(error.argmax())
    return Errors(float(error[at]), float(logits[at]), float(error.sum()), len(got), int((~finite).sum()))


def chunk(first: int, sign: int, gamma: float) -> dict[str, Errors]:
    """The errors of the logits whose magnitudes have the bit patterns [first, first + CHUNK)."""
    z = torch.arange(first, min(first + CHUNK, LAST + 1), dtype=torch.int32).view(torch.float32) * sign
    want, found = hard(z.double(), gamma), {}
    for name, label, flip in (("negative", -1, 1), ("positive", 0, -1)):
        x = (z * flip)[:, None].requires_grad_()
        loss = focal_ext.sigmoid_focal_loss(x, torch.full((len(z),), label, dtype=torch.int8), None, gamma)
        (gradient,) = torch.autograd.grad(loss, x, torch.ones(()).expand_as(loss))
        found[f"{name} loss"] = errors_of(loss.detach()[:, 0], want.loss, x.detach()[:, 0])
        found[f"{name} gradient"] = errors_of(gradient[:, 0] * flip, want.gradient, x.detach()[:, 0])
    return found


def prove(gamma: float, stride: int, threads: int) -> dict[str, Errors]:
    jobs = [(first, sign) for first in range(0, LAST + 1, CHUNK * stride) for sign in (1, -1)]
    found: dict[str, Errors] = {}
    with ThreadPoolExecutor(threads) as pool:
        results = pool.map(lambda job: chunk(*job, gamma), jobs)
        for result in tqdm(results, f"gamma {gamma:g}", len(jobs), unit="chunk", mininterval=1):
            found = {name: found.get(name, Errors()) + errors for name, errors in result.items()}
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gamma", type=float, nargs="+", default=GAMMAS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--stride", type=int, default=1, help="look at every n-th chunk only, for a quick impression")
    options = parser.parse_args()
    reason = why_not_under_test()
    if reason:
        sys.exit(f"the native library is not under test: {reason}")
    torch.set_num_threads(1)
    claim, mean, failed = CLAIMS["native", "hard"].units, CLAIMS["native", "mean"].units, False
    for gamma in options.gamma:
        for name, errors in prove(gamma, options.stride, options.threads).items():
            over = errors.worst > claim or errors.mean >= mean or errors.not_finite > 0
            failed |= over
            verdict = "FAILED" if over else "ok"
            print(f"gamma {gamma:g} {name}: worst {errors.worst:.2f} ULP at {errors.at!r}, mean {errors.mean:.3f} over {errors.count:,}, not finite {errors.not_finite}: {verdict}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

# Owns: the error bounds of ../test_cuda_math.py, measured on the chip's own ex2 and rcp.
# Must not know: how the kernels reach them.
from __future__ import annotations

import focal_ext
import numpy as np
import pytest
import torch
from oracle import hard
from rounding import outside
from test_cuda_math import SMALLEST, UNIT, Results, beyond, bound, everywhere, is_limit, truth
from torch import Tensor

GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 5.0, 10.0, 50.0, 1e3)
# a positive in a tile sends it down the careful path
labels = pytest.mark.parametrize("label", [-1, 0], ids=["stream", "careful"])
gammas = pytest.mark.parametrize("gamma", GAMMAS)


def on_the_chip(z: Tensor, gamma: float, label: int) -> dict[str, Tensor]:
    """Loss and gradient of logits that should be low, as each flow of the kernels gives them, on the CPU."""
    sign = 1 if label < 0 else -1
    leaf = (sign * z).to("cuda")[:, None].requires_grad_()
    targets = torch.full((len(z),), label, device="cuda")
    loss = focal_ext.sigmoid_focal_loss(leaf, targets, None, gamma)
    (chained,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    (gradient,) = torch.autograd.grad(focal_ext.sigmoid_focal_loss(leaf, targets, None, gamma, "sum"), leaf)
    return {
        "value": loss.detach().cpu()[:, 0],
        "gradient": sign * gradient.cpu()[:, 0],
        "chained": sign * chained.cpu()[:, 0],
    }


@labels
@gammas
def test_float32_stays_within_the_proven_bounds(gamma: float, label: int) -> None:
    x = everywhere(2**19)
    exact, allowed = truth(x, gamma), bound("single", gamma)
    for name, got in on_the_chip(torch.from_numpy(x), gamma, label).items():
        want = exact.want.value if name == "value" else exact.want.gradient
        error = np.nan_to_num(np.abs(got.double().numpy() - want), nan=np.inf)
        off = np.where(exact.is_normal, error / np.maximum(want, SMALLEST), 0)
        assert off.max() <= allowed.relative, f"{name} at {x[off.argmax()]!r}: {off.max() / UNIT:.2f} units"
        assert (error <= allowed.absolute + allowed.relative * want)[~exact.is_normal].all(), name


@labels
@gammas
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_logit_is_within_the_bound_before_its_rounding(
    dtype: torch.dtype, gamma: float, label: int
) -> None:
    x = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = x[x.isfinite()]
    want, allowed = hard(x.double(), gamma), bound("half" if gamma in (0, 1, 2) else "single", gamma)
    for name, got in on_the_chip(x, gamma, label).items():
        exact = want.loss if name == "value" else want.gradient
        bad = outside(got, exact, allowed.relative * exact + allowed.absolute)
        assert not bad.any(), f"{name} at {x[bad][0].item()}: got {got[bad][0].item()!r}, want {exact[bad][0].item()!r}"


@labels
@gammas
def test_far_infinite_and_nan_logits_get_their_limits(gamma: float, label: int) -> None:
    x = beyond()
    x = x[x != 0]
    results = on_the_chip(torch.from_numpy(x), gamma, label)
    for gradient in ("gradient", "chained"):
        good = is_limit(Results(results["value"].numpy(), results[gradient].numpy()), x, 16 * UNIT)
        assert good.all(), x[~good][:5]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_reciprocal_of_1_is_1(dtype: torch.dtype) -> None:
    """The half grade takes q = 1 - p and multiplies it by the logit: no other instruction's error may grow like
    that."""
    x = torch.arange(0, 2**15, dtype=torch.int16).view(dtype)
    x = x[x.isfinite() & (x > 100)]
    for gamma in (1.0, 2.0):
        assert (on_the_chip(x, gamma, -1)["gradient"] == 1).all()

# Owns: how many of all logits of bf16 and fp16 have the loss map's correctly rounded value, on the CPU and by the CUDA
# kernels.
# Must not know: formulas; how far off the others are (tolerances.py).
from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any

import focal_ext
import pytest
import torch
from cuda_host import build
from cuda_host.ops import HostOps
from focal_ext import _autograd, reference
from losses import DECLARED
from torch import Tensor

SHARE = {torch.bfloat16: 0.999, torch.float16: 0.995}
CALLS: dict[str, list[dict[str, Any]]] = {
    "sigmoid_focal_loss": [
        {"gamma": gamma, "alpha": alpha}
        for gamma, alpha in zip((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0), cycle((0.25, 0.375)))
    ],
    "quality_focal_loss": [{"beta": beta} for beta in (1.0, 1.5, 2.0, 3.0)],
    "varifocal_loss": [{"gamma": gamma} for gamma in (1.0, 1.5, 2.0, 3.0)],
    "asymmetric_loss": [{}, {"gamma_neg": 2.0, "clip": None}, {"gamma_neg": 1.5, "gamma_pos": 0.5}],
}
CALLS |= {
    name: [dict(options) for options in loss.members.values()] for name, loss in DECLARED.items() if name not in CALLS
}
TARGETS: dict[str, Callable[[Tensor], Tensor]] = {
    "0": torch.zeros_like,
    "1": torch.ones_like,
    "0.3125": lambda x: torch.full_like(x, 0.3125),
}


def every_finite_number(dtype: torch.dtype) -> Tensor:
    """As rows of 32: their number is a multiple of it."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    return numbers[numbers.isfinite()].reshape(-1, 32)


@pytest.mark.parametrize("kernels", ["CPU", "CUDA"])
@pytest.mark.parametrize("dtype", SHARE, ids=str)
@pytest.mark.parametrize("loss", CALLS)
def test_nearly_all_values_of_a_loss_map_are_correctly_rounded(
    loss: str, dtype: torch.dtype, kernels: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernels == "CUDA":
        if build.why_impossible():
            pytest.skip(f"the kernels cannot be compiled here: {build.why_impossible()}")
        monkeypatch.setattr(_autograd, "ops", HostOps(build.load("plain"), max_blocks=3))
    x = every_finite_number(dtype)
    for options in CALLS[loss]:
        for name, targets in TARGETS.items():
            got = getattr(focal_ext, loss)(x, targets(x), reduction="none", **options)
            want = getattr(reference, loss)(x.double(), targets(x).double(), reduction="none", **options).to(dtype)
            share = (got == want).double().mean().item()
            assert share >= SHARE[dtype], f"{options}, targets of {name}: {share:.4%}"

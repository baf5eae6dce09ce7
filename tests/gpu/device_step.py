# Owns: the calls that the tests on a GPU make: their arguments by name, and one forward and backward.
# Must not know: what is tested, what is right.
from __future__ import annotations

from typing import Any, NamedTuple

import focal_ext
import torch
from torch import Tensor

ROWS, CLASSES = 4099, 80  # the last tile is a partial one
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
CALLS: dict[str, dict[str, Any]] = {
    "sum over positives": {"reduction": "sum", "normalizer": "positives"},
    "mean": {"reduction": "mean"},
    "none": {"reduction": "none"},
    "gamma 1.5": {"reduction": "sum", "gamma": 1.5},
    "weight of rows": {"reduction": "sum", "weight": "rows"},
    "alpha of classes": {"reduction": "sum", "alpha": "classes"},
    "normalizer tensor": {"reduction": "sum", "normalizer": "tensor"},
    "dense targets": {"reduction": "mean", "targets": "dense"},
}


class Arguments(NamedTuple):
    inputs: Tensor  # a leaf that requires grad
    targets: Tensor
    options: dict[str, Any]

    def step(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one forward and backward. Nothing here waits for the device."""
        loss = focal_ext.sigmoid_focal_loss(self.inputs, self.targets, **self.options)
        (gradient,) = torch.autograd.grad(loss, self.inputs, torch.ones_like(loss))
        return loss.detach(), gradient

    def refill(self, seed: int) -> None:
        """New logits and labels in the same memory; every seed has another number of positives."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inputs.copy_(torch.randn(self.inputs.shape, generator=generator) * 3 - 4)
        draw = torch.rand(self.targets.shape, generator=generator)
        ids = torch.randint(0, CLASSES, self.targets.shape, generator=generator)
        ids = torch.where(draw < 0.001 * (seed + 1), ids, torch.where(draw > 0.99, -2, -1))
        self.targets.copy_(ids if self.targets.dim() == 1 else draw)


def arguments(call: str, dtype: torch.dtype = torch.float32, device: str = "cuda", rows: int = ROWS) -> Arguments:
    options = dict(CALLS[call])
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    dense = options.pop("targets", None) == "dense"
    targets = torch.zeros(rows, CLASSES, device=device, dtype=dtype) if dense else torch.zeros(rows, device=device, dtype=torch.int64)
    if options.get("weight") == "rows":
        options["weight"] = torch.rand(rows, 1).to(device, accumulation)
    if options.get("alpha") == "classes":
        options["alpha"] = torch.rand(CLASSES).to(device, accumulation)
    if options.get("normalizer") == "tensor":
        options["normalizer"] = torch.tensor(7.3, dtype=accumulation).to(device)
    made = Arguments(torch.zeros(rows, CLASSES, device=device, dtype=dtype).requires_grad_(), targets, options)
    made.refill(0)
    return made

# Owns: the calls that the tests on a GPU make: their arguments by name, and one forward and backward.
# Must not know: what is tested, what is right.
from __future__ import annotations

from typing import Any, NamedTuple

import focal_ext
import torch
from torch import Tensor

ROWS, CLASSES = 4099, 80  # the last tile is a partial one
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SOFTMAX = "softmax_focal_loss"
CALLS: dict[str, dict[str, Any]] = {
    "sum over positives": {"reduction": "sum", "normalizer": "positives"},
    "mean": {"reduction": "mean"},
    "none": {"reduction": "none"},
    "gamma 1.5": {"reduction": "sum", "gamma": 1.5},
    "weight of rows": {"reduction": "sum", "weight": "rows"},
    "alpha of classes": {"reduction": "sum", "alpha": "classes"},
    "normalizer tensor": {"reduction": "sum", "normalizer": "tensor"},
    "dense targets": {"reduction": "mean", "targets": "dense"},
    "softmax, mean": {"loss": SOFTMAX, "reduction": "mean"},
    "softmax, none": {"loss": SOFTMAX, "reduction": "none"},
    "softmax, sum over positives": {"loss": SOFTMAX, "reduction": "sum", "normalizer": "positives"},
    "softmax, smoothed, weight of rows": {
        "loss": SOFTMAX,
        "reduction": "mean",
        "gamma": 1.5,
        "label_smoothing": 0.1,
        "weight": "rows",
    },
    "softmax, alpha of classes, normalizer tensor": {
        "loss": SOFTMAX,
        "reduction": "sum",
        "alpha": "classes",
        "normalizer": "tensor",
    },
    "softmax, dense targets": {"loss": SOFTMAX, "reduction": "mean", "targets": "dense"},
}


class Arguments(NamedTuple):
    inputs: Tensor  # a leaf that requires grad
    targets: Tensor
    options: dict[str, Any]
    loss: str = "sigmoid_focal_loss"

    def step(self) -> tuple[Tensor, Tensor]:
        """Loss and gradient of one forward and backward. Nothing here waits for the device."""
        loss = getattr(focal_ext, self.loss)(self.inputs, self.targets, **self.options)
        (gradient,) = torch.autograd.grad(loss, self.inputs, torch.ones_like(loss))
        return loss.detach(), gradient

    def refill(self, seed: int) -> None:
        """New logits and labels in the same memory; every seed has another number of positives, or of rows that
        count."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            self.inputs.copy_(torch.randn(self.inputs.shape, generator=generator) * 3 - 4)
        draw = torch.rand(self.targets.shape, generator=generator)
        ids = torch.randint(0, CLASSES, self.targets.shape, generator=generator)
        if self.loss == SOFTMAX:  # every row has a class, or is ignored
            ids = torch.where(draw < 0.01 * (seed + 1), -100, ids)
        else:
            ids = torch.where(draw < 0.001 * (seed + 1), ids, torch.where(draw > 0.99, -2, -1))
        self.targets.copy_(ids if self.targets.dim() == 1 else draw)


def arguments(call: str, dtype: torch.dtype = torch.float32, device: str = "cuda", rows: int = ROWS) -> Arguments:
    options = dict(CALLS[call])
    loss = options.pop("loss", "sigmoid_focal_loss")
    accumulation = torch.float64 if dtype == torch.float64 else torch.float32
    dense = options.pop("targets", None) == "dense"
    targets = (
        torch.zeros(rows, CLASSES, device=device, dtype=dtype)
        if dense
        else torch.zeros(rows, device=device, dtype=torch.int64)
    )
    if options.get("weight") == "rows":
        options["weight"] = torch.rand(rows if loss == SOFTMAX else (rows, 1)).to(device, accumulation)
    if options.get("alpha") == "classes":
        options["alpha"] = torch.rand(CLASSES).to(device, accumulation)
    if options.get("normalizer") == "tensor":
        options["normalizer"] = torch.tensor(7.3, dtype=accumulation).to(device)
    made = Arguments(torch.zeros(rows, CLASSES, device=device, dtype=dtype).requires_grad_(), targets, options, loss)
    made.refill(0)
    return made

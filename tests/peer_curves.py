# Owns: other libraries' formulas of one logit, in the logits' dtype, gradients as those libraries take them.
# Must not know: focal_ext, errors.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench import peers
from torch import Tensor

Formula = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
Values = Callable[[Tensor, float, dict[str, Any]], tuple[Tensor, Tensor]]


def torchvision(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    return peers.torchvision(x, t, -1, options["gamma"])


def mmdet_quality(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    return peers.quality(x, t, options["beta"])


def mmdet_varifocal(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    return peers.mmdet_varifocal(x, t, options["alpha"], options["gamma"])


def timm_asymmetric(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    return peers.timm_asymmetric(x, t, options["gamma_neg"], options["gamma_pos"], options["clip"])


def differentiated(formula: Formula) -> Values:
    def values(x: Tensor, target: float, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        loss = formula(leaf, torch.full_like(x, target), options)
        return loss.detach(), torch.autograd.grad(loss, leaf, torch.ones_like(loss))[0]

    return values


def mmcv(x: Tensor, target: float, options: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Both lines of mmcv's kernel: p by 1 / (1 + exp(-x)), logarithms of p and 1 - p cut off at the smallest normal
    number."""
    gamma, least = options["gamma"], torch.finfo(x.dtype).tiny
    p = 1 / (1 + torch.exp(-x))
    if target == 1:
        log = p.clamp(min=least).log()
        return -((1 - p) ** gamma) * log, -((1 - p) ** gamma) * (1 - p - gamma * p * log)
    log = (1 - p).clamp(min=least).log()
    return -(p**gamma) * log, p**gamma * (p - gamma * (1 - p) * log)


PEERS: dict[tuple[str, str], Values] = {
    ("torchvision", "sigmoid_focal_loss"): differentiated(torchvision),
    ("mmcv", "sigmoid_focal_loss"): mmcv,
    ("mmdet", "quality_focal_loss"): differentiated(mmdet_quality),
    ("mmdet", "varifocal_loss"): differentiated(mmdet_varifocal),
    ("timm", "asymmetric_loss"): differentiated(timm_asymmetric),
}

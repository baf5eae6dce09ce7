# Owns: other libraries' formulas of one logit, in the logits' dtype, gradients as those libraries take them.
# Must not know: focal_ext, errors.
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Formula = Callable[[Tensor, Tensor, dict[str, Any]], Tensor]
Values = Callable[[Tensor, float, dict[str, Any]], tuple[Tensor, Tensor]]


def torchvision(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss and fvcore's."""
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    return F.binary_cross_entropy_with_logits(x, t, reduction="none") * (1 - p_t) ** options["gamma"]


def mmdet_quality(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t, reduction="none") * (t - x.sigmoid()).abs().pow(options["beta"])


def mmdet_varifocal(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    p = x.sigmoid()
    weight = torch.where(t > 0, t, options["alpha"] * (p - t).abs().pow(options["gamma"]))
    return F.binary_cross_entropy_with_logits(x, t, reduction="none") * weight


def timm_asymmetric(x: Tensor, t: Tensor, options: dict[str, Any]) -> Tensor:
    """The authors' code and timm's."""
    p = torch.sigmoid(x)
    q = (1 - p + options["clip"]).clamp(max=1)
    entropy = t * p.clamp(min=1e-8).log() + (1 - t) * q.clamp(min=1e-8).log()
    p_t = p * t + q * (1 - t)
    return -entropy * (1 - p_t) ** (options["gamma_pos"] * t + options["gamma_neg"] * (1 - t))


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

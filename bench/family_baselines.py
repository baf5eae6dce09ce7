# Owns: the other losses of the family as their users run them today, eager and in a form that a compiler can fuse.
# Must not know: focal_ext, clocks.
"""Every baseline takes (logits [N, C], class ids [N], scores [N]) and returns the sum."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def one_hot(x: Tensor, ids: Tensor) -> Tensor:
    return ids[:, None] == torch.arange(x.shape[1], device=x.device)


def scored(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return torch.where(one_hot(x, ids), scores[:, None], 0.0)


def quality_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """As mmdet computes it: all logits as negatives, then the positives' entries replaced."""
    p = x.sigmoid()
    loss = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none") * p.pow(2.0)
    row = (ids >= 0).nonzero().squeeze(1)
    column = ids[row]
    modulator = (scores[row] - p[row, column]).abs().pow(2.0)
    loss[row, column] = F.binary_cross_entropy_with_logits(x[row, column], scores[row], reduction="none") * modulator
    return loss.sum()


def quality_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    t = scored(x, ids, scores)
    return (F.binary_cross_entropy_with_logits(x, t, reduction="none") * (t - x.sigmoid()).abs().pow(2.0)).sum()


def varifocal_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    t = torch.zeros_like(x)
    row = (ids >= 0).nonzero().squeeze(1)
    t[row, ids[row]] = scores[row]
    p = x.sigmoid()
    weight = t * (t > 0.0).float() + 0.75 * (p - t).abs().pow(2.0) * (t <= 0.0).float()
    return (F.binary_cross_entropy_with_logits(x, t, reduction="none") * weight).sum()


def varifocal_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    t = scored(x, ids, scores)
    return (
        F.binary_cross_entropy_with_logits(x, t, reduction="none") * torch.where(t > 0, t, 0.75 * x.sigmoid().pow(2.0))
    ).sum()


def asymmetric_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """As the authors and timm compute it, on a one-hot."""
    t = one_hot(x, ids).to(x.dtype)
    p = x.sigmoid()
    q = (1 - p + 0.05).clamp(max=1)
    loss = t * torch.log(p.clamp(min=1e-8)) + (1 - t) * torch.log(q.clamp(min=1e-8))
    p_t = p * t + q * (1 - t)
    gamma = 1.0 * t + 4.0 * (1 - t)
    return -(loss * torch.pow(1 - p_t, gamma)).sum()


def asymmetric_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    positive, p = one_hot(x, ids), x.sigmoid()
    q = (1 - p + 0.05).clamp(max=1)
    low = (1 - q).pow(4.0) * -torch.log(q.clamp(min=1e-8))
    return torch.where(positive, (1 - p) * -F.logsigmoid(x), low).sum()


def matchability_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """As DEIM computes it."""
    t, hard = scored(x, ids, scores).pow(1.5), one_hot(x, ids).to(x.dtype)
    weight = x.sigmoid().pow(1.5).detach() * (1 - hard) + hard
    return F.binary_cross_entropy_with_logits(x, t, weight=weight, reduction="none").sum()


def matchability_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    positive = one_hot(x, ids)
    weight = torch.where(positive, 1.0, x.detach().sigmoid().pow(1.5))
    return (
        F.binary_cross_entropy_with_logits(x, torch.where(positive, scores[:, None].pow(1.5), 0.0), reduction="none")
        * weight
    ).sum()


def iou_aware_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """As LW-DETR computes it."""
    p = x.sigmoid()
    positives, negatives = torch.zeros_like(x), p**2.0
    row = (ids >= 0).nonzero().squeeze(1)
    t = torch.clamp(p[row, ids[row]].pow(0.25) * scores[row].pow(0.75), 0.01).detach()
    positives[row, ids[row]] = t
    negatives[row, ids[row]] = 1 - t
    return (negatives * x - F.logsigmoid(x) * (positives + negatives)).sum()


def iou_aware_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    positive, p = one_hot(x, ids), x.sigmoid()
    t = (p.pow(0.25) * scores[:, None].pow(0.75)).clamp(min=0.01).detach()
    return torch.where(
        positive, F.binary_cross_entropy_with_logits(x, t, reduction="none"), p.pow(2.0) * -F.logsigmoid(-x)
    ).sum()


def gaussian_eager(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """As mmdet computes it, on a dense map."""
    t, p = one_hot(x, ids).to(x.dtype), x.sigmoid()
    high = -(p + 1e-12).log() * (1 - p).pow(2.0) * t.eq(1)
    return (high - (1 - p + 1e-12).log() * p.pow(2.0) * (1 - t).pow(4.0)).sum()


def gaussian_masked(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    t, p = one_hot(x, ids).to(x.dtype), x.sigmoid()
    return torch.where(
        t == 1, (1 - p).pow(2.0) * -F.logsigmoid(x), (1 - t).pow(4.0) * p.pow(2.0) * -F.logsigmoid(-x)
    ).sum()


def softmax_gather(x: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
    """As mmcv's tests and careful users write it: only the target's column goes through the formula."""
    log_p = torch.log_softmax(x, dim=-1).gather(1, classes[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** 2.0 * log_p).sum()


def softmax_one_hot(x: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
    """As most tutorials write it: the formula at every class, then a product with the one-hot."""
    log_p = torch.log_softmax(x, dim=-1)
    focal = -torch.pow(1 - log_p.exp(), 2.0) * log_p
    return (F.one_hot(classes, x.shape[1]).to(x.dtype) * focal).sum()


# loss -> (eager forms, those that are compiled)
BASELINES = {
    "quality_focal_loss": ((quality_eager,), (quality_eager, quality_masked)),
    "varifocal_loss": ((varifocal_eager,), (varifocal_eager, varifocal_masked)),
    "asymmetric_loss": ((asymmetric_eager,), (asymmetric_eager, asymmetric_masked)),
    "matchability_aware_loss": ((matchability_eager,), (matchability_eager, matchability_masked)),
    "iou_aware_bce_loss": ((iou_aware_eager,), (iou_aware_eager, iou_aware_masked)),
    "gaussian_focal_loss": ((gaussian_eager,), (gaussian_eager, gaussian_masked)),
    "softmax_focal_loss": ((softmax_one_hot, softmax_gather), (softmax_one_hot, softmax_gather)),
}


def peers(loss: str) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor] | str]:
    """Other libraries as they are installed, or why one cannot be imported."""
    if loss != "softmax_focal_loss":
        return {}
    try:
        from kornia.losses import focal_loss
    except ImportError as error:
        return {"kornia": str(error)}
    return {"kornia": lambda x, classes, scores: focal_loss(x, classes, None, 2.0, "sum", ignore_index=None)}

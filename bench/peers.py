# Owns: the losses as other libraries write them in eager PyTorch, one number for each logit.
# Must not know: focal_ext, clocks, reductions.
"""Every loss takes logits x [N, C], or of any shape where targets are dense, and gives their losses unreduced. What its
library takes for a constant has no gradient. Pairs are class ids [N],
negative for background, and scores [N]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(x: Tensor, t: Tensor, weight: Tensor | None = None) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t, weight=weight, reduction="none")


def one_hot(x: Tensor, ids: Tensor) -> Tensor:
    return ids[:, None] == torch.arange(x.shape[1], device=x.device)


def labels_of_detr(x: Tensor, ids: Tensor) -> Tensor:
    """As the DETR family makes them: integers of one class more, which background has."""
    return F.one_hot(torch.where(ids < 0, x.shape[1], ids), x.shape[1] + 1)[..., :-1]


def positives(ids: Tensor) -> tuple[Tensor, Tensor]:
    row = (ids >= 0).nonzero().squeeze(1)
    return row, ids[row]


def torchvision(x: Tensor, t: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss and fvcore's, term by term."""
    p = torch.sigmoid(x)
    ce = cross_entropy(x, t)
    p_t = p * t + (1 - p) * (1 - t)
    loss = ce * ((1 - p_t) ** gamma)
    return (alpha * t + (1 - alpha) * (1 - t)) * loss if alpha >= 0 else loss


def quality(x: Tensor, t: Tensor, beta: float = 2.0) -> Tensor:
    return cross_entropy(x, t) * (t - x.sigmoid()).abs().pow(beta)


def mmdet_quality(x: Tensor, ids: Tensor, scores: Tensor, beta: float = 2.0) -> Tensor:
    """All logits as negatives, then the positives' entries replaced."""
    p = x.sigmoid()
    loss = cross_entropy(x, torch.zeros_like(x)) * p.pow(beta)
    where = positives(ids)
    chosen, score = x[where], scores[where[0]]
    loss[where] = cross_entropy(chosen, score) * (score - chosen.sigmoid()).abs().pow(beta)
    return loss


def mmdet_varifocal(x: Tensor, t: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    p = x.sigmoid()
    positive = (t > 0.0).to(x.dtype)
    return cross_entropy(x, t) * (t * positive + alpha * (p - t).abs().pow(gamma) * (1 - positive))


def rt_detr_varifocal(x: Tensor, ids: Tensor, scores: Tensor, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    """RT-DETR's and D-FINE's: the modulator is a constant."""
    label = labels_of_detr(x, ids)
    t = scores[:, None] * label
    p = x.detach().sigmoid()
    return cross_entropy(x, t, alpha * p.pow(gamma) * (1 - label) + t)


def deim(x: Tensor, ids: Tensor, scores: Tensor, gamma: float = 1.5) -> Tensor:
    label = labels_of_detr(x, ids)
    t = (scores[:, None] * label).pow(gamma)
    return cross_entropy(x, t, x.sigmoid().detach().pow(gamma) * (1 - label) + label)


def lw_detr(x: Tensor, ids: Tensor, scores: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = x.sigmoid()
    high, low = torch.zeros_like(x), p**gamma
    where = positives(ids)
    t = torch.clamp(p[where].pow(alpha) * scores[where[0]].pow(1 - alpha), 0.01).detach()
    high[where] = t
    low[where] = 1 - t
    return low * x - F.logsigmoid(x) * (high + low)


def mmdet_gaussian(x: Tensor, t: Tensor, alpha: float = 2.0, gamma: float = 4.0) -> Tensor:
    """The loss of a heat map; CenterPoint's logits are not clamped here."""
    p, eps = x.sigmoid(), 1e-12
    high = -(p + eps).log() * (1 - p).pow(alpha) * t.eq(1)
    return high - (1 - p + eps).log() * p.pow(alpha) * (1 - t).pow(gamma)


def timm_asymmetric(
    x: Tensor, t: Tensor, gamma_neg: float = 4.0, gamma_pos: float = 1.0, clip: float = 0.05, live: bool = True
) -> Tensor:
    """The authors' and timm's; not `live`: disable_torch_grad_focal_loss."""
    p = x.sigmoid()
    q = (1 - p + clip).clamp(max=1)
    ce = t * p.clamp(min=1e-8).log() + (1 - t) * q.clamp(min=1e-8).log()
    with torch.set_grad_enabled(live and torch.is_grad_enabled()):
        p_t = p * t + q * (1 - t)
        focus = torch.pow(1 - p_t, gamma_pos * t + gamma_neg * (1 - t))
    return -ce * focus


def ultralytics(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """The loss of the assigner's scores, which are a dense tensor there."""
    t = torch.zeros_like(x)
    row, column = positives(ids)
    t[row, column] = scores[row]
    return cross_entropy(x, t)


def softmax_gather(x: Tensor, ids: Tensor, gamma: float = 2.0) -> Tensor:
    """A loss for each row. As mmcv's tests and careful users write it: only the target's column goes through the
    formula."""
    log_p = torch.log_softmax(x, dim=-1).gather(1, ids[:, None]).squeeze(1)
    return -((1 - log_p.exp()) ** gamma) * log_p


def softmax_dense(x: Tensor, t: Tensor, gamma: float = 2.0) -> Tensor:
    """As most tutorials write it: the formula at every class, then a product with the one-hot."""
    log_p = torch.log_softmax(x, dim=-1)
    return t * -torch.pow(1 - log_p.exp(), gamma) * log_p


def softmax_of_cross_entropy(x: Tensor, ids: Tensor, gamma: float = 2.0) -> Tensor:
    """As segmentation libraries write it, on the class axis 1."""
    ce = F.cross_entropy(x, ids, reduction="none")
    return (1 - torch.exp(-ce)) ** gamma * ce

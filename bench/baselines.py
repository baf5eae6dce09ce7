# Owns: what people run today, at its best: the formula of torchvision as its RetinaNet calls it, eager and compiled.
# Must not know: focal_ext, clocks.
"""Every baseline takes (logits [N, C], class ids [N], gamma) and returns the sum over kept anchors divided by the positives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

ALPHA = 0.25


def _formula(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, term by term, before the reduction."""
    p = torch.sigmoid(x)
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    return (ALPHA * t + (1 - ALPHA) * (1 - t)) * (ce * ((1 - p_t) ** gamma))


def eager(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """As torchvision's RetinaNet does: a one-hot by index, ignored anchors (-2) dropped by a mask, divided by the positives."""
    foreground = ids >= 0
    t = torch.zeros_like(x)
    t[foreground, ids[foreground]] = 1.0
    kept = ids != -2
    return _formula(x[kept], t[kept], gamma).sum() / max(1, int(foreground.sum()))


def masked(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """The same without shapes that depend on values, which is what a compiler needs: compare for the one-hot, multiply for the mask."""
    t = (ids[:, None] == torch.arange(x.shape[1], device=x.device)).to(x.dtype)
    loss = _formula(x, t, gamma) * (ids != -2)[:, None]
    return loss.sum() / (ids >= 0).sum().clamp(min=1)


def selected(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """A formulation written for the compiler: each logit's sign decides, so that one log and one exponential remain."""
    positive = ids[:, None] == torch.arange(x.shape[1], device=x.device)
    z = torch.where(positive, -x, x).float()
    loss = torch.where(positive, ALPHA, 1 - ALPHA) * torch.sigmoid(z) ** gamma * F.softplus(z)
    return torch.where((ids == -2)[:, None], 0.0, loss).sum() / (ids >= 0).sum().clamp(min=1)


def installed_peers() -> dict[str, object]:
    """The fused CUDA kernels of other libraries, where they are installed; same signature as the baselines."""
    peers: dict[str, object] = {}
    try:
        from apex.contrib.focal_loss import focal_loss

        peers["apex"] = lambda x, ids, gamma: focal_loss(x, ids, (ids >= 0).sum().clamp(min=1).float(), x.shape[1], ALPHA, gamma)
    except ImportError:
        pass
    try:
        from mmcv.ops import sigmoid_focal_loss as mmcv_loss

        def mmcv(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
            kept = ids != -2
            labels = torch.where(ids < 0, x.shape[1], ids)[kept]  # background is C there, and nothing can be ignored
            return mmcv_loss(x[kept], labels, gamma, ALPHA, None, "sum") / (ids >= 0).sum().clamp(min=1)

        peers["mmcv"] = mmcv
    except ImportError:
        pass
    return peers

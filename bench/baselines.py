# Owns: what people run today, at its best: the formula of torchvision as its RetinaNet calls it, eager and compiled;
# the same by other libraries.
# Must not know: focal_ext, clocks.
"""Every baseline takes (logits [N, C], class ids [N], gamma) and returns the sum over kept anchors divided by the
positives."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .peers import torchvision

ALPHA = 0.25


def _dense(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, ids: Tensor) -> Tensor:
    """As torchvision's RetinaNet calls a loss of dense targets: a one-hot by index, ignored anchors (-2) dropped by a
    mask, divided by the positives."""
    foreground = ids >= 0
    t = torch.zeros_like(x)
    t[foreground, ids[foreground]] = 1.0
    kept = ids != -2
    return loss(x[kept], t[kept]) / max(1, int(foreground.sum()))


def eager(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    return _dense(lambda x, t: torchvision(x, t, ALPHA, gamma).sum(), x, ids)


def masked(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """The same without shapes that depend on values, which is what a compiler needs: compare for the one-hot, multiply
    for the mask."""
    t = (ids[:, None] == torch.arange(x.shape[1], device=x.device)).to(x.dtype)
    loss = torchvision(x, t, ALPHA, gamma) * (ids != -2)[:, None]
    return loss.sum() / (ids >= 0).sum().clamp(min=1)


def selected(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
    """A formulation written for the compiler: each logit's sign decides, so that one log and one exponential remain."""
    positive = ids[:, None] == torch.arange(x.shape[1], device=x.device)
    z = torch.where(positive, -x, x).float()
    loss = torch.where(positive, ALPHA, 1 - ALPHA) * torch.sigmoid(z) ** gamma * F.softplus(z)
    return torch.where((ids == -2)[:, None], 0.0, loss).sum() / (ids >= 0).sum().clamp(min=1)


Baseline = Callable[[Tensor, Tensor, float], Tensor]


def _fvcore() -> Baseline:
    from fvcore.nn import sigmoid_focal_loss

    return lambda x, ids, gamma: _dense(lambda *kept: sigmoid_focal_loss(*kept, ALPHA, gamma, "sum"), x, ids)


def _kornia() -> Baseline:
    from kornia.losses import binary_focal_loss_with_logits

    return lambda x, ids, gamma: _dense(
        lambda *kept: binary_focal_loss_with_logits(*kept, ALPHA, gamma, "sum", ignore_index=None), x, ids
    )


def _apex() -> Baseline:
    from apex.contrib.focal_loss import focal_loss

    return lambda x, ids, gamma: focal_loss(x, ids, (ids >= 0).sum().clamp(min=1).float(), x.shape[1], ALPHA, gamma)


def _mmcv() -> Baseline:
    from mmcv.ops import sigmoid_focal_loss

    def loss(x: Tensor, ids: Tensor, gamma: float) -> Tensor:
        kept = ids != -2
        labels = torch.where(ids < 0, x.shape[1], ids)[kept]  # background is C there, and nothing can be ignored
        return sigmoid_focal_loss(x[kept], labels, gamma, ALPHA, None, "sum") / (ids >= 0).sum().clamp(min=1)

    return loss


def peers(cuda: bool) -> dict[str, Baseline | str]:
    """Other libraries as they are installed, or why one cannot be imported. The kernels of apex and mmcv are for
    CUDA."""
    found: dict[str, Baseline | str] = {}
    for name, load in {
        "fvcore": _fvcore,
        "kornia": _kornia,
        **({"apex": _apex, "mmcv": _mmcv} if cuda else {}),
    }.items():
        try:
            found[name] = load()
        except ImportError as error:
            found[name] = str(error)
    return found

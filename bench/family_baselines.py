# Owns: the other losses of the family as their users run them today, eager and in a form that a compiler can fuse.
# Must not know: focal_ext, clocks.
"""Every baseline takes (logits [N, C], class ids [N], scores [N]) and returns the sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import peers
from .peers import one_hot

Baseline = Callable[[Tensor, Tensor, Tensor], Tensor]


def scored(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return torch.where(one_hot(x, ids), scores[:, None], 0.0)


def on_pairs(loss: Callable[..., Tensor]) -> Baseline:
    return lambda x, ids, scores: loss(x, ids, scores).sum()


def on_scores(loss: Callable[..., Tensor]) -> Baseline:
    """The loss of a dense tensor of scores, filled in at the positives."""

    def baseline(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
        t = torch.zeros_like(x)
        row, column = peers.positives(ids)
        t[row, column] = scores[row]
        return loss(x, t).sum()

    return baseline


def on_masks(loss: Callable[..., Tensor]) -> Baseline:
    """The loss of scores by comparison, which a compiler needs no memory for."""
    return lambda x, ids, scores: loss(x, scored(x, ids, scores)).sum()


def on_labels(loss: Callable[..., Tensor], **options: Any) -> Baseline:
    return lambda x, ids, scores: loss(x, one_hot(x, ids).to(x.dtype), **options).sum()


# The forms for the compiler: softplus is the cross entropy of a negative, and softplus - t x that of the target t.


def quality_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    t = scored(x, ids, scores)
    distance = t - x.sigmoid()
    return ((F.softplus(x) - t * x) * distance * distance).sum()


def varifocal_fused(x: Tensor, ids: Tensor, scores: Tensor, live: bool = True) -> Tensor:
    positive, p = one_hot(x, ids), (x if live else x.detach()).sigmoid()
    return (
        torch.where(positive, scores[:, None], 0.75 * p * p)
        * (F.softplus(x) - torch.where(positive, scores[:, None] * x, 0.0))
    ).sum()


def constant_varifocal_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return varifocal_fused(x, ids, scores, live=False)


def matchability_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    positive, p = one_hot(x, ids), x.detach().sigmoid()
    own = scores[:, None] * scores[:, None].sqrt()
    return (torch.where(positive, 1.0, p * p.sqrt()) * (F.softplus(x) - torch.where(positive, own * x, 0.0))).sum()


def iou_aware_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """The powers of the positives alone, gathered."""
    positive, p = one_hot(x, ids), x.sigmoid()
    own = x.detach().gather(1, ids.clamp(min=0)[:, None]).sigmoid()
    t = (own.pow(0.25) * scores[:, None].pow(0.75)).clamp(min=0.01)
    return (torch.where(positive, 1.0, p * p) * (F.softplus(x) - torch.where(positive, t * x, 0.0))).sum()


def gaussian_map_fused(x: Tensor, t: Tensor) -> Tensor:
    p, ce, rest = x.sigmoid(), F.softplus(x), 1 - t
    near = rest * rest
    return torch.where(t == 1, (1 - p) * (1 - p) * (ce - x), near * near * p * p * ce)


def asymmetric_fused(x: Tensor, ids: Tensor, scores: Tensor, live: bool = True) -> Tensor:
    positive, p = one_hot(x, ids), x.sigmoid()
    u = (p - 0.05).clamp(min=0)
    focus, high = (u, 1 - p) if live else (u.detach(), (1 - p).detach())
    square = focus * focus
    return torch.where(positive, high * F.softplus(-x), square * square * -torch.log1p(-u)).sum()


def constant_asymmetric_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return asymmetric_fused(x, ids, scores, live=False)


def cross_entropy_fused(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return (F.softplus(x) - scored(x, ids, scores) * x).sum()


def softmax_gather(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return peers.softmax_gather(x, ids).sum()


def softmax_one_hot(x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    return peers.softmax_dense(x, F.one_hot(ids, x.shape[1]).to(x.dtype)).sum()


class Forms(NamedTuple):
    """A loss with these options: its eager forms, and those that are compiled."""

    loss: str
    options: dict[str, Any]
    eager: dict[str, Baseline]
    compiled: dict[str, Baseline]


def forms(loss: str, eager: Baseline, fused: dict[str, Baseline], **options: Any) -> Forms:
    return Forms(loss, options, {"": eager}, {"eager": eager, **fused})


SOFTMAX = {"one-hot": softmax_one_hot, "gather": softmax_gather}
# what a row of the table is called -> its forms
BASELINES = {
    "quality_focal_loss": forms(
        "quality_focal_loss",
        on_pairs(peers.mmdet_quality),
        {"masked": on_masks(peers.quality), "fused": quality_fused},
    ),
    "varifocal_loss": forms(
        "varifocal_loss",
        on_scores(peers.mmdet_varifocal),
        {"masked": on_masks(peers.mmdet_varifocal), "fused": varifocal_fused},
    ),
    "asymmetric_loss": forms("asymmetric_loss", on_labels(peers.timm_asymmetric), {"fused": asymmetric_fused}),
    "varifocal_loss (RT-DETR)": forms(
        "varifocal_loss",
        on_pairs(peers.rt_detr_varifocal),
        {"fused": constant_varifocal_fused},
        modulator_gradient=False,
    ),
    "matchability_aware_loss (DEIM)": forms(
        "matchability_aware_loss", on_pairs(peers.deim), {"fused": matchability_fused}
    ),
    "iou_aware_bce_loss (LW-DETR)": forms("iou_aware_bce_loss", on_pairs(peers.lw_detr), {"fused": iou_aware_fused}),
    "gaussian_focal_loss (mmdet)": forms(
        "gaussian_focal_loss", on_labels(peers.mmdet_gaussian), {"fused": on_labels(gaussian_map_fused)}
    ),
    "asymmetric_loss (timm, constant focus)": forms(
        "asymmetric_loss",
        on_labels(peers.timm_asymmetric, live=False),
        {"fused": constant_asymmetric_fused},
        modulator_gradient=False,
    ),
    "quality_focal_loss (beta 0, YOLO)": forms(
        "quality_focal_loss", on_pairs(peers.ultralytics), {"fused": cross_entropy_fused}, beta=0.0
    ),
    "softmax_focal_loss": Forms("softmax_focal_loss", {}, SOFTMAX, SOFTMAX),
}


def libraries(loss: str) -> dict[str, Baseline | str]:
    """Other libraries as they are installed, or why one cannot be imported."""
    if loss != "softmax_focal_loss":
        return {}
    try:
        from kornia.losses import focal_loss
    except ImportError as error:
        return {"kornia": str(error)}
    return {"kornia": lambda x, classes, scores: focal_loss(x, classes, None, 2.0, "sum", ignore_index=None)}

# Owns the losses of a batch: of classification by name, each as one call of focal_ext, and of the boxes.
# Must not know the network or how anchors were labelled.

import torch
from torch.nn import functional as F

import focal_ext

from .boxes import encode
from .matcher import BACKGROUND, IGNORED

MINED = 3  # negatives kept per positive by "ohem"; Liu et al. 2016 (SSD)


def criterion(settings):
    """(logits [B, N, C], targets [B, N]) -> the sum over anchors, divided by max(positives, 1)."""
    alpha = settings.alpha if settings.loss in ("balanced", "focal") else None
    gamma = settings.gamma if settings.loss == "focal" else 0.0

    def loss(logits, targets):
        kept = hardest(logits, targets, MINED) if settings.loss == "ohem" else targets
        smoothing = settings.label_smoothing
        return focal_ext.sigmoid_focal_loss(
            logits, kept, alpha, gamma, "sum", normalizer="positives", label_smoothing=smoothing
        )

    return loss


LOSSES = ("ce", "balanced", "focal", "ohem")


@torch.no_grad()
def hardest(logits, targets, ratio):
    """Targets that ignore the easy negatives: each image keeps its positives and `ratio` times as many negatives.

    An image without positives keeps `ratio` negatives, or nothing would be learned from it.
    """
    # cross entropy grows with the logit
    difficulty = logits.amax(dim=-1).masked_fill(targets != BACKGROUND, float("-inf"))
    place = difficulty.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = place < ratio * (targets >= 0).sum(dim=1, keepdim=True).clamp(min=1)
    return targets.masked_fill((targets == BACKGROUND) & ~kept, IGNORED)


def box_loss(regression, anchors, truth, targets, beta=1 / 9):
    """Smooth L1 on positives only, divided by their number.

    regression, truth [B, N, 4]; anchors [N, 4]; targets [B, N]; beta: where L2 turns to L1.
    """
    positive = targets >= 0
    count = int(positive.sum())
    if count == 0:
        # Every parameter needs a gradient, be it 0: optimisers and DistributedDataParallel count on it.
        return 0 * regression.sum()
    code = encode(truth[positive], anchors.expand_as(truth)[positive])
    return F.smooth_l1_loss(regression[positive], code, beta=beta, reduction="sum") / count

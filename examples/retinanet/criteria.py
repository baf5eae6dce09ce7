# Owns the classification losses by name, each as one call of focal_ext.
# Must not know the network, how anchors were labelled, or the loss of boxes.

import torch

import focal_ext

from . import softmax
from .matcher import BACKGROUND, IGNORED

MINED = 3  # negatives kept per positive by "ohem"; Liu et al. 2016 (SSD)


def criterion(settings, class_weights=()):
    """(logits [B, N, C], targets [B, N]) -> the sum over anchors, divided by max(positives, 1); class_weights: for
    "softmax"."""
    if settings.loss == "softmax":
        return softmax.loss(settings.alpha, settings.gamma, settings.label_smoothing, class_weights)
    if settings.class_alpha != "same":
        raise ValueError(
            f"--class-alpha {settings.class_alpha} weighs the classes of --loss softmax, got --loss {settings.loss}"
        )
    return LOSSES[settings.loss](settings)


def sigmoid(alpha, gamma, label_smoothing):
    def loss(logits, targets):
        return focal_ext.sigmoid_focal_loss(
            logits, targets, alpha, gamma, "sum", normalizer="positives", label_smoothing=label_smoothing
        )

    return loss


def mined(base):
    """`base` on the positives and, in each image, on the MINED times as many negatives that cross entropy finds
    hardest."""

    def loss(logits, targets):
        return base(logits, hardest(logits, targets, MINED))

    return loss


@torch.no_grad()
def hardest(logits, targets, ratio):
    """`targets` in which every negative is IGNORED but, in each image, the `ratio` times as many as positives with the
    largest loss.

    An image without positives keeps `ratio` negatives, or nothing would be learned from it.
    """
    # cross entropy grows with the logit
    difficulty = logits.amax(dim=-1).masked_fill(targets != BACKGROUND, float("-inf"))
    place = difficulty.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    kept = place < ratio * (targets >= 0).sum(dim=1, keepdim=True).clamp(min=1)
    return targets.masked_fill((targets == BACKGROUND) & ~kept, IGNORED)


LOSSES = {
    "ce": lambda settings: sigmoid(None, 0.0, settings.label_smoothing),
    "balanced": lambda settings: sigmoid(settings.alpha, 0.0, settings.label_smoothing),
    "focal": lambda settings: sigmoid(settings.alpha, settings.gamma, settings.label_smoothing),
    "ohem": lambda settings: mined(sigmoid(None, 0.0, settings.label_smoothing)),
}

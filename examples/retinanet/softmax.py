# Owns the softmax head: one column per class and a last one for background; its prior, its loss, its scores.
# Must not know the network's layers or how anchors were labelled.

import math

import torch
from torch import nn

import focal_ext

from .matcher import BACKGROUND, IGNORED


def loss(alpha, gamma, label_smoothing, class_weights):
    """(logits [B, N, C + 1], targets [B, N]) -> the sum over anchors, divided by max(positives, 1).

    The weight of class c is alpha * class_weights[c], that of background 1 - alpha.
    """
    alphas = None if alpha is None else [*(alpha * weight for weight in class_weights), 1 - alpha]

    def of_batch(logits, targets):
        # to a softmax, background is a class like others
        ids = targets.masked_fill(targets == BACKGROUND, logits.shape[-1] - 1)
        positives = (targets >= 0).sum().clamp(min=1).to(logits.dtype)
        return focal_ext.softmax_focal_loss(
            logits,
            ids,
            alphas,
            gamma,
            "sum",
            normalizer=positives,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
        )

    return of_batch


def class_weights(labels, classes, how):
    """[classes] floats. "same": 1. "inverse": the rarer in `labels` the more, with a mean over the objects of 1."""
    if how == "same":
        return [1.0] * classes
    counts = torch.bincount(labels, minlength=classes).clamp(min=1).double()
    return (len(labels) / (classes * counts)).tolist()


@torch.no_grad()
def init_prior_(conv, prior, columns):
    """Every anchor starts with the probability `prior` of being an object of some class, all classes alike."""
    bias = torch.zeros(columns)
    bias[-1] = math.log((1 - prior) / prior * (columns - 1))
    conv.bias.copy_(bias.repeat(len(conv.bias) // columns))


class AsSigmoid(nn.Module):
    """The network as detection.detect expects it: logits [B, N, C] whose sigmoid is the softmax's probability of each
    class."""

    def __init__(self, network):
        super().__init__()
        self.network, self.num_classes = network, network.num_classes - 1

    def forward(self, images):
        logits, code = self.network(images)
        others = [
            torch.cat([logits[..., :c], logits[..., c + 1 :]], dim=-1).logsumexp(dim=-1)
            for c in range(self.num_classes)
        ]
        return logits[..., :-1] - torch.stack(others, dim=-1), code

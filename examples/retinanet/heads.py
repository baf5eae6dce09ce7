# Owns the ways from the last feature maps of classification to its loss: over rows, over the maps as they are, fused
# with the convolution.
# Must not know the rest of the network, or how anchors were labelled.
"""Every way takes (features, convolution, num_classes, targets, alpha, gamma) and returns the sum over anchors /
max(positives, 1).

features: [B, channels, H, W] of each level; convolution: the last layer, to A * num_classes channels; targets [B, N].
"""

import focal_ext

from .model import rows


def over_rows(focal):
    """The convolution, permute, cat, then `focal`: focal_ext.sigmoid_focal_loss or anything with its arguments."""

    def loss(features, convolution, num_classes, targets, alpha, gamma):
        logits = rows([convolution(x) for x in features], num_classes)
        return focal(logits, targets, alpha, gamma, "sum", normalizer="positives")

    return loss


def over_pyramid(features, convolution, num_classes, targets, alpha, gamma):
    """No permute and no cat: the loss reads the convolution's output."""
    levels = [convolution(x) for x in features]
    return focal_ext.pyramid.sigmoid_focal_loss(levels, targets, num_classes, alpha, gamma, normalizer="positives")


def fused(features, convolution, num_classes, targets, alpha, gamma):
    """The convolution's output is never stored."""
    return focal_ext.conv_sigmoid_focal_loss(
        features,
        convolution.weight,
        convolution.bias,
        targets,
        num_classes,
        alpha,
        gamma,
        stride=convolution.stride,
        padding=convolution.padding,
        normalizer="positives",
    )


HEADS = {"rows": over_rows(focal_ext.sigmoid_focal_loss), "pyramid": over_pyramid, "fused": fused}

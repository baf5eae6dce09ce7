# Owns the loss of a batch: focal on every anchor that is not ignored, smooth L1 on the positives, both per positive.
# Must not know how anchors were labelled or where the focal loss is computed.

from torch.nn import functional as F

from .boxes import encode


def classification_loss(focal, logits, targets, alpha, gamma):
    """focal: focal_ext.sigmoid_focal_loss, or anything with its arguments. The sum over anchors, divided by
    max(positives, 1)."""
    return focal(logits, targets, alpha, gamma, "sum", normalizer="positives")


def box_loss(regression, anchors, truth, targets, beta=1 / 9):
    """Smooth L1 on positives only. regression, truth [B, N, 4]; anchors [N, 4]; targets [B, N]; beta: where L2 turns to
    L1."""
    positive = targets >= 0
    count = int(positive.sum())
    if count == 0:
        # 0, yet connected: every parameter still gets a gradient, which optimisers and DistributedDataParallel count
        # on.
        return 0 * regression.sum()
    code = encode(truth[positive], anchors.expand_as(truth)[positive])
    return F.smooth_l1_loss(regression[positive], code, beta=beta, reduction="sum") / count

# Owns: the names of maskrcnn_benchmark.layers.sigmoid_focal_loss.
# Must not know: maskrcnn_benchmark itself.
"""``from focal_ext.compat.maskrcnn_benchmark import SigmoidFocalLoss``"""

from __future__ import annotations

from torch import Tensor, nn

from .. import losses
from ._conventions import checked_ids


def _loss(logits: Tensor, targets: Tensor, gamma: float, alpha: float, reduction: str) -> Tensor:
    classes = logits.shape[-1]
    ids = checked_ids(logits, targets, -1, classes, f"maskrcnn-benchmark labels: 1..{classes} positive, 0 background, -1 ignored")
    return losses.sigmoid_focal_loss(logits, ids - 1, alpha, gamma, reduction)  # 0..C-1, -1 and -2


def sigmoid_focal_loss_cuda(logits: Tensor, targets: Tensor, gamma: float, alpha: float) -> Tensor:
    """Equivalent to the function of this name, on any device: the loss of each logit."""
    return _loss(logits, targets, gamma, alpha, "none")


class SigmoidFocalLoss(nn.Module):
    """Equivalent to ``maskrcnn_benchmark.layers.SigmoidFocalLoss``: the sum, which callers divide by positives + images.

    Labels: 1..C positive, 0 background, -1 ignored.
    """

    def __init__(self, gamma: float, alpha: float) -> None:
        super().__init__()
        self.gamma, self.alpha = gamma, alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return _loss(logits, targets, self.gamma, self.alpha, "sum")

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, alpha={self.alpha}"

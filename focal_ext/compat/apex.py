# Owns: the names of apex.contrib.focal_loss.
# Must not know: apex itself.
"""``from focal_ext.compat import apex as focal_loss``, or ``from focal_ext.compat.apex import focal_loss``"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import losses
from ._conventions import as_scalar, checked_ids


def focal_loss(
    cls_output: Tensor,
    cls_targets_at_level: Tensor,
    num_positive_sum: Tensor,
    num_real_classes: int,
    alpha: float,
    gamma: float,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Equivalent to ``apex.contrib.focal_loss.focal_loss``: the sum over logits, divided by ``num_positive_sum`` as it
    is.

    Labels: 0 .. num_real_classes - 1 positive, -1 background, -2 ignored. Columns from num_real_classes on are padding;
    their logits must be finite. Unlike apex, any dtype, shape, device and number of classes, and a second backward is
    right.
    """
    classes = cls_output.shape[-1] if isinstance(cls_output, Tensor) and cls_output.dim() else num_real_classes
    if not 0 <= num_real_classes <= classes:
        raise ValueError(f"num_real_classes: must be in [0, {classes}], the number of columns, got {num_real_classes}")
    convention = f"apex labels: 0..{num_real_classes - 1} positive, -1 background, -2 ignored"
    ids = checked_ids(cls_output, cls_targets_at_level, -2, num_real_classes - 1, convention)
    real = None
    if num_real_classes < classes:
        real = (torch.arange(classes, device=cls_output.device) < num_real_classes).float()
    normalizer = as_scalar(num_positive_sum)
    return losses.sigmoid_focal_loss(
        cls_output, ids, alpha, gamma, "sum", normalizer=normalizer, weight=real, label_smoothing=label_smoothing
    )


class FocalLoss:
    """Stands in for apex's autograd Function, of which callers use ``FocalLoss.apply``."""

    apply = staticmethod(focal_loss)

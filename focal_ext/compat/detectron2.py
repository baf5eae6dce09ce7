# Owns: the losses of detectron2's RetinaNet, FCOS and LVIS heads over the core.
# Must not know: detectron2 itself, until patched() or apply() is called.
"""``focal_ext.compat.detectron2.apply()`` before training: the focal loss of RetinaNet and FCOS, which is fvcore's, and
the federated loss of LVIS heads (USE_SIGMOID_CE, USE_FED_LOSS)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import losses
from ._patching import Switch
from .fvcore import sigmoid_focal_loss_jit


def _sigmoid_cross_entropy_loss(self: Any, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
    """Cross entropy of N x K of the N x (K + 1) logits over N: those of the last column, background, have the weight 0,
    and so do the classes that the federated loss leaves out. No slice is copied."""
    rows, columns = pred_class_logits.shape
    weight = torch.zeros(columns, device=pred_class_logits.device)
    if self.use_fed_loss:
        options = {
            "num_fed_loss_classes": self.fed_loss_num_classes,
            "num_classes": columns - 1,
            "weight": self.fed_loss_cls_weights,
        }
        weight[self.get_fed_loss_classes(gt_classes, **options)] = 1
        weight[-1] = 0
    else:
        weight[:-1] = 1
    return losses.sigmoid_focal_loss(
        pred_class_logits, gt_classes, None, 0.0, "sum", normalizer=max(rows, 1), weight=weight
    )


_FAST_RCNN = "detectron2.modeling.roi_heads.fast_rcnn:FastRCNNOutputLayers"
SWITCH = Switch(
    "detectron2",
    known="0.6",
    places={
        "detectron2.modeling.meta_arch.retinanet:sigmoid_focal_loss_jit": sigmoid_focal_loss_jit,
        f"{_FAST_RCNN}.sigmoid_cross_entropy_loss": _sigmoid_cross_entropy_loss,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

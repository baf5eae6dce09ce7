# Owns: which losses of transformers' detectors are fused, and how its matched targets become class ids.
# Must not know: transformers itself, until patched() or apply() is called.
"""``with focal_ext.compat.transformers.patched(): output = model(pixel_values=..., labels=...)``, or ``.apply()`` once,
before training.

Every detection loss of transformers' LOSS_MAPPING whose classification is a focal one; names in the Switch below.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import losses
from .._arguments import accumulation_dtype
from ._boxes import iou_of_pairs
from ._patching import Switch
from .detr import sigmoid_focal_loss

Matches = list[tuple[Tensor, Tensor]]


def _ids(criterion: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches) -> Tensor:
    """The class of the box that each query is matched to, -1 for none, of shape (batch, queries)."""
    logits = outputs["logits"]
    ids = torch.full(logits.shape[:2], -1, dtype=torch.int64, device=logits.device)
    ids[criterion._get_source_permutation_idx(indices)] = torch.cat(
        [t["class_labels"][matched] for t, (_, matched) in zip(targets, indices)]
    )
    return ids


def _focal(
    self: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches, num_boxes: float
) -> dict[str, Tensor]:
    """Deformable, Conditional and DAB DETR: mean over queries times their number is the sum."""
    ids = _ids(self, outputs, targets, indices)
    return {
        "loss_ce": losses.sigmoid_focal_loss(outputs["logits"], ids, self.focal_alpha, 2, "sum", normalizer=num_boxes)
    }


def _token_focal(
    self: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches, num_boxes: float
) -> dict[str, Tensor]:
    """Grounding DINO: tokens that are padding have the weight 0, where transformers selects the others into a tensor of
    its own."""
    logits, tokens = outputs["logits"], self._get_target_classes_one_hot(outputs, targets, indices)
    weight = outputs["text_mask"].to(logits.dtype)
    return {
        "loss_ce": losses.sigmoid_focal_loss(
            logits, tokens, self.focal_alpha, 2, "sum", normalizer=num_boxes, weight=weight
        )
    }


def _pair(
    criterion: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches
) -> tuple[Tensor, Tensor]:
    """Ids, and the IoU of each matched query's box with its target."""
    index = criterion._get_source_permutation_idx(indices)
    boxes = torch.cat([t["boxes"][matched] for t, (_, matched) in zip(targets, indices)])
    scores = torch.zeros(
        outputs["logits"].shape[:2], dtype=accumulation_dtype(outputs["logits"].dtype), device=outputs["logits"].device
    )
    scores[index] = iou_of_pairs(outputs["pred_boxes"][index].detach(), boxes).to(scores.dtype)
    return _ids(criterion, outputs, targets, indices), scores


def _varifocal(
    self: Any,
    outputs: dict[str, Any],
    targets: list[dict[str, Tensor]],
    indices: Matches,
    num_boxes: float,
    log: bool = True,
) -> dict[str, Tensor]:
    """RT-DETR, RT-DETRv2 and D-FINE, whose modulator is a constant."""
    pair, numbers = _pair(self, outputs, targets, indices), (self.alpha, self.gamma)
    return {
        "loss_vfl": losses.varifocal_loss(
            outputs["logits"], pair, *numbers, "sum", normalizer=num_boxes, modulator_gradient=False
        )
    }


def _matchability_aware(
    self: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches, num_boxes: float
) -> dict[str, Tensor]:
    """DEIMv2."""
    pair, numbers = _pair(self, outputs, targets, indices), (self.gamma, self.mal_alpha)
    return {"loss_mal": losses.matchability_aware_loss(outputs["logits"], pair, *numbers, "sum", normalizer=num_boxes)}


def _iou_aware(
    self: Any, outputs: dict[str, Any], targets: list[dict[str, Tensor]], indices: Matches, num_boxes: float
) -> dict[str, Tensor]:
    """LW-DETR and RF-DETR."""
    pair = _pair(self, outputs, targets, indices)
    return {
        "loss_ce": losses.iou_aware_bce_loss(
            outputs["logits"], pair, self.focal_alpha, 2.0, "sum", normalizer=num_boxes
        )
    }


def _mask_focal(inputs: Tensor, labels: Tensor, num_masks: float, alpha: float = 0.25, gamma: float = 2) -> Tensor:
    return sigmoid_focal_loss(inputs, labels, num_masks, alpha, gamma)


def _mask_cross_entropy(inputs: Tensor, labels: Tensor, num_masks: float) -> Tensor:
    """Mask2Former's and RF-DETR's, at sampled points: focal loss of gamma 0."""
    return sigmoid_focal_loss(inputs, labels, num_masks, -1, 0)


SWITCH = Switch(
    "transformers",
    known="5.23.0",
    places={
        "transformers.loss.loss_deformable_detr:DeformableDetrImageLoss.loss_labels": _focal,
        "transformers.loss.loss_grounding_dino:GroundingDinoImageLoss.loss_labels": _token_focal,
        "transformers.loss.loss_rt_detr:RTDetrLoss.loss_labels_vfl": _varifocal,
        "transformers.loss.loss_deimv2:Deimv2Loss.loss_labels_mal": _matchability_aware,
        "transformers.loss.loss_lw_detr:LwDetrImageLoss.loss_labels": _iou_aware,
        "transformers.loss.loss_for_object_detection:sigmoid_focal_loss": sigmoid_focal_loss,
        "transformers.loss.loss_rf_detr:sigmoid_cross_entropy_loss": _mask_cross_entropy,
        "transformers.models.maskformer.modeling_maskformer:sigmoid_focal_loss": _mask_focal,
        "transformers.models.mask2former.modeling_mask2former:sigmoid_cross_entropy_loss": _mask_cross_entropy,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

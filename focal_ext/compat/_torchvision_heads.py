# Owns: the classification loss of torchvision's detection heads from class ids, one call per batch.
# Must not know: models, boxes.
#
# The one file that imports a library it stands in for: its classes are subclasses. focal_ext.compat.torchvision imports it when a head is named.
from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection import fcos, retinanet  # type: ignore[import-not-found]

from .. import losses
from .._arguments import accumulation_dtype
from ._conventions import checked_ids


def _class_ids(logits: Tensor, targets: list[dict[str, Tensor]], matched_idxs: list[Tensor]) -> Tensor:
    """Ids of shape (images, anchors) from the boxes that anchors match: -1, below the threshold, is background; -2, between, is ignored.

    Both index a column appended to the labels, from the end: images without boxes need no branch.
    """
    labels = [pad(pad(image["labels"], (0, 1), value=-2), (0, 1), value=-1) for image in targets]
    ids = torch.stack([image[matched] for image, matched in zip(labels, matched_idxs)])
    classes = logits.shape[-1]
    return checked_ids(logits, ids, -2, classes - 1, f"torchvision labels: 0..{classes - 1}; build the model with num_classes above the largest label")


def _as(kind: type[nn.Module], head: nn.Module) -> nn.Module:
    """The same weights under torchvision's own class, which is what torch.jit.script compiles: its loss has the same value. torch.jit.script
    leaves that head in the detector it was given, too: take the fused one again afterwards."""
    plain = copy.copy(head)
    plain.__class__ = kind
    return plain


class RetinaNetClassificationHead(retinanet.RetinaNetClassificationHead):  # type: ignore[misc]
    """torchvision's head whose loss has no one-hot, no boolean indexing and no loop over images' logits."""

    def compute_loss(self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]) -> Tensor:
        logits = head_outputs["cls_logits"]
        ids = _class_ids(logits, targets, matched_idxs)
        positives = (ids >= 0).sum(1).clamp(min=1).to(accumulation_dtype(logits.dtype))
        weight = 1 / (positives * len(targets))[:, None, None]  # the mean over images of each image's own mean
        return losses.sigmoid_focal_loss(logits, ids, reduction="sum", weight=weight)

    def __prepare_scriptable__(self) -> nn.Module:
        return _as(retinanet.RetinaNetClassificationHead, self)


class FCOSHead(fcos.FCOSHead):  # type: ignore[misc]
    """torchvision's head with the classification loss from class ids; the box losses are torchvision's."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> dict[str, Tensor]:
        logits = head_outputs["cls_logits"]
        # torchvision computes all losses in one function: it is given a single class, whose loss is then replaced.
        one_class = [{**image, "labels": torch.zeros_like(image["labels"])} for image in targets]
        found = super().compute_loss(one_class, {**head_outputs, "cls_logits": logits[..., :1].detach()}, anchors, matched_idxs)
        ids = _class_ids(logits, targets, matched_idxs)
        return {**found, "classification": losses.sigmoid_focal_loss(logits, ids, reduction="sum", normalizer="positives")}

    def __prepare_scriptable__(self) -> nn.Module:
        return _as(fcos.FCOSHead, self)

# Owns: the classification loss of torchvision's detection heads from class ids, one call per batch; converting a
# detector to them.
# Must not know: boxes.
#
# The one file that imports a library it stands in for: its classes are subclasses. focal_ext.compat.torchvision imports
# it when a head is named.
from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection import fcos, retinanet  # type: ignore[import-not-found]

from .. import losses
from .._arguments import accumulation_dtype
from ._conventions import checked_ids


def _class_ids(logits: Tensor, targets: list[dict[str, Tensor]], matched_idxs: list[Tensor]) -> Tensor:
    """Ids of shape (images, anchors) from the boxes that anchors match: -1, below the threshold, is background; -2,
    between, is ignored.

    Both index a column appended to the labels, from the end: images without boxes need no branch.
    """
    labels = [pad(pad(image["labels"], (0, 1), value=-2), (0, 1), value=-1) for image in targets]
    ids = torch.stack([image[matched] for image, matched in zip(labels, matched_idxs)])
    classes = logits.shape[-1]
    return checked_ids(
        logits,
        ids,
        -2,
        classes - 1,
        f"torchvision labels: 0..{classes - 1}; build the model with num_classes above the largest label",
    )


def _scripts_as(theirs: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates a method: torch.jit.script, which cannot compile it, compiles torchvision's own instead, of the same
    value.

    TorchScript takes a method's source from what it wraps, and the names in it from its globals: both are torchvision's
    here.
    """

    def decorate(ours: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Any, *arguments: Any, ours: Callable[..., Any] = ours) -> Any:
            return ours(self, *arguments)

        moved = FunctionType(method.__code__, theirs.__globals__, theirs.__name__, None, None)
        moved.__kwdefaults__ = {"ours": ours}
        return functools.wraps(theirs)(moved)

    return decorate


class RetinaNetClassificationHead(retinanet.RetinaNetClassificationHead):  # type: ignore[misc]
    """torchvision's head whose loss has no one-hot, no boolean indexing and no loop over images' logits."""

    @_scripts_as(retinanet.RetinaNetClassificationHead.compute_loss)
    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        logits = head_outputs["cls_logits"]
        ids = _class_ids(logits, targets, matched_idxs)
        positives = (ids >= 0).sum(1).clamp(min=1).to(accumulation_dtype(logits.dtype))
        weight = 1 / (positives * len(targets))[:, None, None]  # the mean over images of each image's own mean
        return losses.sigmoid_focal_loss(logits, ids, reduction="sum", weight=weight)


class FCOSHead(fcos.FCOSHead):  # type: ignore[misc]
    """torchvision's head with the classification loss from class ids; the box losses are torchvision's."""

    @_scripts_as(fcos.FCOSHead.compute_loss)
    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        logits = head_outputs["cls_logits"]
        # torchvision computes all losses in one function: it is given a single class, whose loss is then replaced.
        one_class = [{**image, "labels": torch.zeros_like(image["labels"])} for image in targets]
        found = fcos.FCOSHead.compute_loss(
            self, one_class, {**head_outputs, "cls_logits": logits[..., :1].detach()}, anchors, matched_idxs
        )
        ids = _class_ids(logits, targets, matched_idxs)
        return {
            **found,
            "classification": losses.sigmoid_focal_loss(logits, ids, reduction="sum", normalizer="positives"),
        }


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    retinanet.RetinaNetClassificationHead: RetinaNetClassificationHead,
    fcos.FCOSHead: FCOSHead,
}


def convert_(model: nn.Module) -> nn.Module:
    """Gives every RetinaNet and FCOS in ``model`` the fused head, in place and with its weights; returns ``model``.

    Parameters, buffers and their names stay the same objects: an optimizer, a DistributedDataParallel or a checkpoint
    made before still fits. A second call changes nothing.

    Raises:
        TypeError: ``model`` has no head of torchvision's RetinaNet or FCOS, or has one of a class derived from theirs.
    """
    heads = [module for module in model.modules() if isinstance(module, tuple(FUSED))]
    if not heads:
        raise TypeError(f"model: has no head of torchvision's RetinaNet or FCOS, got {type(model).__name__}")
    for head in heads:
        if type(head) not in (*FUSED, *FUSED.values()):
            bases = ", ".join(
                f"focal_ext.compat.torchvision.{fused.__name__}"
                for plain, fused in FUSED.items()
                if isinstance(head, plain)
            )
            raise TypeError(
                f"model: {type(head).__name__} is a class of your own; derive it from {bases} instead of torchvision's"
            )
    for head in heads:
        head.__class__ = FUSED.get(type(head), type(head))
    return model


def losses_and_detections(
    model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """The losses of validation beside the detections, in one pass of a RetinaNet or FCOS in eval mode, where
    torchvision gives the detections only.

    Statistics of batch norm stay as they are, and nothing is resized at random. Under ``torch.no_grad()`` it keeps
    nothing for backward.

    Raises:
        TypeError: ``model`` is no RetinaNet or FCOS of torchvision.
        ValueError: ``model`` is in training mode, or targets are missing.
    """
    if not isinstance(model, (retinanet.RetinaNet, fcos.FCOS)):
        raise TypeError(
            f"model: must be torchvision's RetinaNet or FCOS, got {type(model).__name__}; of a wrapped one pass "
            "model.module"
        )
    if model.training:
        raise ValueError(
            "model: must be in eval mode, whose losses these are; call model.eval(), or model(images, targets) to train"
        )
    if not isinstance(targets, (list, tuple)) or len(targets) != len(images):
        raise ValueError(
            f"targets: must be a list with the boxes and labels of each of {len(images)} images, got "
            f"{type(targets).__name__}"
        )
    seen: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.__setitem__(name, (inputs, output))

    hooks = [
        getattr(model, name).register_forward_hook(keep(name)) for name in ("transform", "head", "anchor_generator")
    ]
    try:
        detections = model(images, targets)
    finally:
        for hook in hooks:
            hook.remove()
    (_, (_, resized)), ((features, *_), outputs), (_, anchors) = (
        seen["transform"],
        seen["head"],
        seen["anchor_generator"],
    )
    per_level = [[level.shape[2] * level.shape[3] for level in features]] if isinstance(model, fcos.FCOS) else []
    return model.compute_loss(resized, outputs, anchors, *per_level), detections

# Owns: the names of effdet.loss.
# Must not know: effdet itself, until patched() or apply() is called.
"""``with focal_ext.compat.effdet.patched(): loss, class_loss, box_loss = criterion(...)``"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .. import _arguments as arguments
from .. import losses, pyramid
from .._symbols import as_tensor
from ._conventions import as_scalar, check_dense, check_hard
from ._patching import Switch, with_original


def new_focal_loss(
    logits: Tensor,
    targets: Tensor,
    alpha: float,
    gamma: float,
    normalizer: float | Tensor,
    label_smoothing: float = 0.01,
) -> Tensor:
    """Equivalent to ``effdet.loss.new_focal_loss``: the loss of each logit divided by ``normalizer``; dense targets."""
    check_dense(logits, targets, "effdet")
    divisor, dtype = as_scalar(normalizer), arguments.accumulation_dtype(logits.dtype)
    weight = 1 / (
        divisor.to(logits.device, dtype) if isinstance(divisor, Tensor) else as_tensor(divisor, logits, dtype)
    )
    return losses.sigmoid_focal_loss(
        logits, targets, alpha, gamma, "none", weight=weight, label_smoothing=label_smoothing
    )


def focal_loss_legacy(
    logits: Tensor, targets: Tensor, alpha: float, gamma: float, normalizer: float | Tensor
) -> Tensor:
    """Equivalent to ``effdet.loss.focal_loss_legacy``, whose targets are 0 or 1."""
    check_dense(logits, targets, "effdet")
    check_hard(logits, targets, "effdet's legacy loss")
    return new_focal_loss(logits, targets, alpha, gamma, normalizer, label_smoothing=0.0)


@with_original
def _loss_fn(
    original: Callable[..., tuple[Tensor, Tensor, Tensor]],
    cls_outputs: list[Tensor],
    box_outputs: list[Tensor],
    cls_targets: list[Tensor],
    box_targets: list[Tensor],
    num_positives: Tensor,
    num_classes: int,
    alpha: float,
    gamma: float,
    delta: float,
    box_loss_weight: float,
    label_smoothing: float = 0.0,
    legacy_focal: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """All levels in one call, from class ids and in place. The box loss is effdet's, which is given a single class,
    whose loss is then replaced."""
    logits = [x.new_zeros(x.shape[0], ids.shape[-1], *x.shape[2:]) for x, ids in zip(cls_outputs, cls_targets)]
    options = (num_positives, 1, alpha, gamma, delta, box_loss_weight, label_smoothing, legacy_focal)
    box_loss = original(logits, box_outputs, [ids.clamp(max=0) for ids in cls_targets], box_targets, *options)[2]
    ids, smoothing = torch.cat([ids.flatten(1) for ids in cls_targets], 1), 0.0 if legacy_focal else label_smoothing
    normalizer = num_positives.sum().float() + 1
    class_loss = pyramid.sigmoid_focal_loss(
        cls_outputs, ids, num_classes, alpha, gamma, "sum", normalizer=normalizer, label_smoothing=smoothing
    )
    return class_loss + box_loss_weight * box_loss, class_loss, box_loss


# Not where config.jit_loss compiled the loss before.
SWITCH = Switch(
    "effdet",
    known="0.4.1",
    places={
        "effdet.loss:loss_fn": _loss_fn,
        "effdet.loss:new_focal_loss": new_focal_loss,
        "effdet.loss:focal_loss_legacy": focal_loss_legacy,
    },
)
patched, apply, restore = SWITCH.patched, SWITCH.apply, SWITCH.restore

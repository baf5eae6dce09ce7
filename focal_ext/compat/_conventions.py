# Owns: what every library's convention comes down to: which class ids and targets it knows, how its numbers become
# ours.
# Must not know: any one library.
from __future__ import annotations

import torch
from torch import Tensor

from .. import _arguments as arguments
from .._reference import widened
from .._symbols import holds

# An id outside every range: the core makes loss and gradient of its row NaN.
INVALID = torch.iinfo(torch.int64).min


@arguments.quiet_under_jit_trace
def checked_ids(
    inputs: Tensor, targets: Tensor, lowest: int, highest: int, convention: str, ignored: int | None = None
) -> Tensor:
    """Class ids as int64, all in [lowest, highest] or equal to `ignored`. Others raise, naming the convention; where
    reading values would stall a device they become INVALID."""
    arguments.check_inputs(inputs)
    if arguments.is_dense(inputs, targets):
        raise ValueError(
            f"targets: must be class ids of shape {tuple(inputs.shape[:-1])}, got dense targets of the logits' shape; "
            f"{convention}"
        )
    ids = widened(targets)
    bad = (ids < lowest) | (ids > highest)
    if ignored is not None:
        bad &= ids != ignored
    if not arguments.values_are_readable(inputs, ids):
        return ids.masked_fill(bad, INVALID)
    if bad.any():
        first = int(bad.flatten().to(torch.uint8).argmax())
        raise ValueError(
            f"targets: class id {int(ids.flatten()[first])} at anchor {first} is outside [{lowest}, {highest}]; "
            f"{convention}"
        )
    return ids


def without_last_background(ids: Tensor, classes: int) -> Tensor:
    """Checked ids of libraries whose background is C, which the core does not take for background where C is 1."""
    return ids.masked_fill(ids == 1, -1) if holds(classes == 1) else ids


@arguments.quiet_under_jit_trace
def check_dense(inputs: Tensor, targets: Tensor, library: str) -> None:
    arguments.check_inputs(inputs)
    if not arguments.is_dense(inputs, targets):
        raise ValueError(
            f"targets: {library} takes dense targets of the logits' shape {tuple(inputs.shape)}, got class ids of shape"
            f" {tuple(targets.shape)}; call focal_ext.sigmoid_focal_loss for class ids"
        )


def is_hard(targets: Tensor, ignored: int | None = None) -> bool:
    """Whether targets are 0, 1 or ignored. Some libraries compute another function of other targets. On a device they
    cannot be looked for."""
    if not targets.is_floating_point() or not arguments.values_are_readable(targets):
        return True
    hard = (targets == 0) | (targets == 1)
    return bool((hard if ignored is None else hard | (targets == ignored)).all())


def check_hard(inputs: Tensor, targets: Tensor, library: str) -> None:
    """Refuses values between 0 and 1, for which `library` computes another function; on a device they cannot be looked
    for."""
    if arguments.values_are_readable(inputs) and not is_hard(targets):
        raise ValueError(
            f"targets: must be 0 or 1, {library} has a formula of its own for values between; call "
            "focal_ext.sigmoid_focal_loss for soft targets"
        )


def unless_negative(alpha: float) -> float | None:
    """The alpha of libraries that switch it off by any negative number."""
    return None if arguments.is_number(alpha) and holds(alpha < 0, unknown=False) else alpha


def as_scalar(normalizer: float | Tensor) -> float | Tensor:
    """A tensor of one element as the 0-d tensor that the core takes."""
    return normalizer.reshape(()) if isinstance(normalizer, Tensor) and normalizer.numel() == 1 else normalizer


def logits_of(probabilities: Tensor) -> Tensor:
    """Inverse of the sigmoid, finite at 0 and 1."""
    limits = torch.finfo(probabilities.dtype)
    return torch.logit(probabilities.clamp(limits.tiny, 1 - limits.eps / 2))


def without_half(inputs: Tensor, reduction: str) -> Tensor:
    """Logits whose unreduced loss is at least float32. A reduced one is float32 anyway."""
    return (
        inputs.float()
        if reduction == "none" and isinstance(inputs, Tensor) and inputs.dtype in (torch.float16, torch.bfloat16)
        else inputs
    )

# Owns: logits whose classes are not the last dimension, as rows or as the levels that the ops read in place.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from ._levels import Levels
from ._spec import LossSpec
from ._torch_private import is_jit_traced


class Laid(NamedTuple):
    """The same arguments for a layout that the ops know."""

    inputs: Tensor | Levels
    targets: Any
    weight: Any
    unreduced: Unreduced


# What is to be done to an unreduced loss: an int moves its classes from the last dimension back to that one, a tuple is
# the shape that it gets, None is nothing.
Unreduced = int | tuple[int, ...] | None


def as_asked(loss: Tensor, unreduced: Unreduced) -> Tensor:
    if unreduced is None:
        return loss
    return loss.movedim(-1, unreduced) if isinstance(unreduced, int) else loss.reshape(unreduced)


def check_class_dim(class_dim: Any, inputs: Tensor) -> int:
    arguments.check_inputs(inputs)
    if isinstance(class_dim, bool) or not isinstance(class_dim, int):
        raise TypeError(f"class_dim: must be an integer, got {type(class_dim).__name__}")
    if not -inputs.dim() <= class_dim < inputs.dim():
        raise ValueError(f"class_dim: must be a dimension of inputs of shape {tuple(inputs.shape)}, got {class_dim}")
    return class_dim % inputs.dim()


def laid(
    spec: LossSpec,
    inputs: Tensor,
    targets: Any,
    weight: Any,
    class_dim: Any,
    has_class_alpha: bool,
    reduction: Any,
    batch_dims: Any,
) -> Laid:
    """Dense targets of losses of single logits are a flat array whatever the layout; else planes are read in place, or
    rows; else rows are copied."""
    dim = check_class_dim(class_dim, inputs)
    arguments.check_batch_dims(batch_dims, reduction)
    arguments.check_batch_end(batch_dims, dim, inputs.shape)
    if dim == inputs.dim() - 1:
        return Laid(inputs, targets, weight, None)
    dense, rows = _is_dense(inputs, targets, dim), inputs.movedim(dim, -1)
    _check_weight(spec, inputs, weight, dim)
    if dense and not (spec.is_per_row or has_class_alpha or rows.is_contiguous()):
        return _flat(inputs, targets, weight, dim)
    # a loss for each image, or for all
    if (not batch_dims or batch_dims == dim == 1) and _are_planes(spec, inputs, rows, dense, reduction):
        fits, plane_weight = _weight_of_planes(spec, inputs, weight, dim)
        if fits:
            return _in_planes(spec, inputs, targets, plane_weight, dim, dense)
    if dense:
        targets = targets.movedim(dim, -1)
    if isinstance(weight, Tensor) and not spec.is_per_row and weight.dim() > 0:
        weight = _as_wide_as(inputs.shape, weight).movedim(dim, -1)
    return Laid(rows, targets, weight, None if spec.is_per_row else dim)


def _are_planes(spec: LossSpec, inputs: Tensor, rows: Tensor, dense: bool, reduction: Any) -> bool:
    """Whether the ops read the logits in planes, where they are."""
    if (dense and not spec.is_per_row) or arguments.is_distributed(inputs):
        return False
    if not is_compiling() and is_jit_traced():  # with sizes that are tensors, and by the reference
        return False
    has_kernel = reduction != "none" or spec.is_per_row or inputs.device.type == "cpu"
    return bool(inputs.is_contiguous() and not rows.is_contiguous() and has_kernel and inputs.numel())


def _in_planes(spec: LossSpec, inputs: Tensor, targets: Any, weight: Any, dim: int, dense: bool) -> Laid:
    shape = inputs.shape
    images, positions = shape[:dim].numel(), shape[dim + 1 :].numel()
    of_ids = (*shape[:dim], *shape[dim + 1 :])
    if dim != 1:
        inputs = inputs.reshape(images, *shape[dim:])
    if dense:
        targets = targets.reshape(inputs.shape)
    elif isinstance(targets, Tensor):
        targets = targets.reshape(images, positions)
    else:
        targets = tuple(t.reshape(images, positions) for t in targets)
    return Laid(
        Levels([inputs], shape[dim], [positions], True), targets, weight, of_ids if spec.is_per_row else tuple(shape)
    )


def _flat(inputs: Tensor, targets: Any, weight: Any, dim: int) -> Laid:
    """Dense targets of losses of single logits; a weight that all positions share makes a row of them."""
    if not isinstance(weight, Tensor) or weight.numel() == 1 or not inputs.is_contiguous():
        return Laid(inputs, targets, weight, None)
    wide, shape = _as_wide_as(inputs.shape, weight), inputs.shape
    if wide.shape[dim + 1 :].numel() != 1:
        return Laid(inputs, targets, weight, None)
    flat = (*shape[: dim + 1], shape[dim + 1 :].numel())
    return Laid(inputs.reshape(flat), targets.reshape(flat), wide.reshape(*wide.shape[: dim + 1], 1), tuple(shape))


def _is_dense(inputs: Tensor, targets: Any, dim: int) -> bool:
    of_ids = (*inputs.shape[:dim], *inputs.shape[dim + 1 :])
    given = targets if isinstance(targets, (tuple, list)) else [targets]
    for t in given:
        if not isinstance(t, Tensor):
            raise TypeError(
                f"targets: must be a torch.Tensor, or of some losses a pair of them, got {type(t).__name__}"
            )
        if tuple(t.shape) != of_ids and (len(given) > 1 or t.shape != inputs.shape):
            raise ValueError(
                f"targets: with class_dim={dim} shape must be {of_ids} for class ids or {tuple(inputs.shape)} for "
                f"dense targets, got {tuple(t.shape)}"
            )
    return len(given) == 1 and given[0].shape == inputs.shape


def _check_weight(spec: LossSpec, inputs: Tensor, weight: Any, dim: int) -> None:
    """What is wrong beside the shape is said where all weights are checked."""
    wanted = (*inputs.shape[:dim], *inputs.shape[dim + 1 :]) if spec.is_per_row else tuple(inputs.shape)
    if isinstance(weight, Tensor) and (
        weight.dim() > len(wanted) or any(w not in (1, s) for w, s in zip(reversed(weight.shape), reversed(wanted)))
    ):
        hint = "; a factor for each class is alpha" if spec.is_per_row and weight.numel() == inputs.shape[dim] else ""
        raise ValueError(
            f"weight: with class_dim={dim} must broadcast to {'the rows of inputs' if spec.is_per_row else 'inputs'}, "
            f"{wanted}, got {tuple(weight.shape)}{hint}"
        )


def _as_wide_as(shape: Sequence[int], weight: Tensor) -> Tensor:
    return weight.reshape(*[1] * (len(shape) - weight.dim()), *weight.shape)


def _weight_of_planes(spec: LossSpec, inputs: Tensor, weight: Any, dim: int) -> tuple[bool, Any]:
    """Whether planes can have the weight, one number an image, a position or a class, and the weight as they have
    it."""
    if not isinstance(weight, Tensor):
        return True, weight
    shape = inputs.shape
    of_rows = (*shape[:dim], *shape[dim + 1 :])
    if not spec.is_per_row:
        wide = _as_wide_as(shape, weight)
        if wide.shape[dim] != 1:
            return wide.numel() == shape[dim], wide.reshape(-1)
        weight = wide.squeeze(dim)
    weight, images = _as_wide_as(of_rows, weight), shape[:dim].numel()
    if weight.shape[dim:].numel() == 1:
        return True, weight.expand(*shape[:dim], *weight.shape[dim:]).reshape(images, 1)
    return True, weight.expand(of_rows).reshape(images, -1)

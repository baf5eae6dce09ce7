# Owns: logits whose classes are not the last dimension, as rows or as the levels that the ops read in place.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

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
    moved_from: int | None  # the dimension that an unreduced loss of rows has its classes moved back to; None: nothing is to be undone


def check_class_dim(class_dim: Any, inputs: Tensor) -> int:
    arguments.check_inputs(inputs)
    if isinstance(class_dim, bool) or not isinstance(class_dim, int):
        raise TypeError(f"class_dim: must be an integer, got {type(class_dim).__name__}")
    if not -inputs.dim() <= class_dim < inputs.dim():
        raise ValueError(f"class_dim: must be a dimension of inputs of shape {tuple(inputs.shape)}, got {class_dim}")
    return class_dim % inputs.dim()


def laid(spec: LossSpec, inputs: Tensor, targets: Any, weight: Any, class_dim: Any, has_class_alpha: bool, reduction: Any, batch_dims: Any) -> Laid:
    """Dense targets of losses of single logits are a flat array whatever the layout; class ids are read in planes or in rows; else rows are copied."""
    dim = check_class_dim(class_dim, inputs)
    arguments.check_batch_dims(batch_dims, reduction)
    arguments.check_batch_end(batch_dims, dim, inputs.shape)
    if dim == inputs.dim() - 1:
        return Laid(inputs, targets, weight, None)
    dense, rows = _is_dense(inputs, targets, dim), inputs.movedim(dim, -1)
    if dense and not (spec.is_per_row or has_class_alpha or rows.is_contiguous()):
        return Laid(inputs, targets, weight, None)
    is_traced = not is_compiling() and is_jit_traced()  # with sizes that are tensors, and by the reference
    reads_planes = not (dense or spec.is_per_row or is_traced) and (not batch_dims or batch_dims == dim == 1)  # a loss for each image, or for all
    if reads_planes and inputs.is_contiguous() and not rows.is_contiguous() and reduction in ("sum", "mean"):
        shape = inputs.shape
        images, positions = shape[:dim].numel(), shape[dim + 1 :].numel()
        fits, plane_weight = _weight_of_planes(inputs, weight, dim)
        if fits and inputs.numel():
            planes = inputs.view(images, shape[dim], positions, 1)
            of_planes = [t.reshape(images, positions) for t in (targets if isinstance(targets, (tuple, list)) else [targets])]
            return Laid(Levels([planes], shape[dim]), tuple(of_planes) if len(of_planes) > 1 else of_planes[0], plane_weight, None)
    if dense:
        targets = targets.movedim(dim, -1)
    if isinstance(weight, Tensor) and not spec.is_per_row and 0 < weight.dim() <= inputs.dim():
        weight = weight.reshape(*[1] * (inputs.dim() - weight.dim()), *weight.shape).movedim(dim, -1)
    return Laid(rows, targets, weight, None if spec.is_per_row else dim)


def _is_dense(inputs: Tensor, targets: Any, dim: int) -> bool:
    of_ids = (*inputs.shape[:dim], *inputs.shape[dim + 1 :])
    given = targets if isinstance(targets, (tuple, list)) else [targets]
    for t in given:
        if not isinstance(t, Tensor):
            raise TypeError(f"targets: must be a torch.Tensor, or of some losses a pair of them, got {type(t).__name__}")
        if tuple(t.shape) != of_ids and (len(given) > 1 or t.shape != inputs.shape):
            raise ValueError(
                f"targets: with class_dim={dim} shape must be {of_ids} for class ids or {tuple(inputs.shape)} for dense targets, got {tuple(t.shape)}"
            )
    return len(given) == 1 and given[0].shape == inputs.shape


def _weight_of_planes(inputs: Tensor, weight: Any, dim: int) -> tuple[bool, Any]:
    """Whether planes can have the weight, one number an image or a position, and the weight as they have it."""
    if weight is None:
        return True, None
    if not isinstance(weight, Tensor) or weight.dim() != inputs.dim() or weight.shape[dim] != 1:
        return False, None
    shape = inputs.shape
    if weight.shape[:dim] == shape[:dim] and weight.shape[dim + 1 :] == shape[dim + 1 :]:
        return True, weight.reshape(shape[:dim].numel(), -1)
    if weight.shape[:dim] == shape[:dim] and weight.shape[dim:].numel() == 1:
        return True, weight.reshape(-1, 1)
    return False, None

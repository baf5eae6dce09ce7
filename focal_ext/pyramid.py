# Owns: the loss over a feature pyramid in the head's own layout: the function, autograd, reference.
# Must not know: formulas, kernels, what an argument may be.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _autograd, _native, _reference
from . import _by_tensors as by_tensors
from . import _factors as factors
from ._arguments import Alpha, Normalizer
from ._call import Loss, PyramidCall, check
from ._native import ops
from ._pyramid import anchors_of, check_call, check_ids_of, check_levels, check_overwrite, is_native_layout
from ._torch_private import below_autograd, below_in_place, is_batched, keeps_graph, outside_old_graphs


@outside_old_graphs
@arguments.quiet_under_jit_trace
def sigmoid_focal_loss_pyramid(
    levels: Sequence[Tensor],
    targets: Tensor | Sequence[Tensor],
    num_classes: int,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    label_smoothing: float = 0.0,
    overwrite_inputs: bool = False,
) -> Tensor:
    """Sigmoid focal loss of a feature pyramid, read in the layout in which a convolution writes it: no permute, no cat, no copy.

    Equal to flattening the levels to (images, anchors, classes), concatenating them and calling
    :func:`focal_ext.sigmoid_focal_loss`, to rounding: on the CPU every gradient is the same to the bit, unless one weight an image is
    given, which is multiplied first. Gradients come back in each level's own memory format.

    Args:
        levels: logits [B, A * K, H_l, W_l] of each level, channel ``a * K + k`` for anchor a and class k, as torchvision, detectron2 and
            mmdet arrange them. Each contiguous or channels_last; any other layout costs a copy.
        targets: class ids [B, sum of H_l W_l A], the levels one after the other, in each (y, x, anchor) with the anchor fastest; or a list
            of such tensors, one for each level. Their meaning is that of :func:`focal_ext.sigmoid_focal_loss`.
        num_classes: K.
        alpha, gamma, normalizer, ignore_index, label_smoothing, overwrite_inputs: as in :func:`focal_ext.sigmoid_focal_loss`.
        reduction: "sum" or "mean" (over all logits that are not ignored).
        weight: factor of each image, [B, 1], such as torchvision's normaliser for each image, or of each anchor, of the shape of targets.

    Returns:
        The loss, a float32 (float64 for float64) number.

    Raises:
        TypeError, ValueError: as in :func:`focal_ext.sigmoid_focal_loss`; also for an empty list of levels.

    Example:
        >>> levels = [torch.randn(2, 9 * 80, s, s, requires_grad=True) for s in (8, 4)]
        >>> labels = torch.full((2, 9 * (64 + 16)), -1)
        >>> sigmoid_focal_loss_pyramid(levels, labels, 80, normalizer="positives").backward()
    """
    check_levels(levels, num_classes)
    counts = anchors_of(levels, num_classes)
    call = check_call(levels[0], counts, targets, num_classes, alpha, gamma, reduction, normalizer, weight, ignore_index, label_smoothing)
    if overwrite_inputs and torch.is_grad_enabled() and not (arguments.is_traced() or torch.is_inference_mode_enabled()):
        check_overwrite(levels, call.targets, weight)
    loss = dispatch(tuple(levels), call, overwrite_inputs)
    check_ids_of(loss, call)
    return loss


def as_rows(levels: Sequence[Tensor], num_classes: int) -> Tensor:
    """The levels as [B, anchors of all levels, classes], by copies: what the ops avoid."""

    def rows(level: Tensor) -> Tensor:
        images, channels, height, width = level.shape
        anchors = channels // num_classes
        split = level.unflatten(1, (anchors, num_classes))
        return split.permute(0, 3, 4, 1, 2).reshape(images, height * width * anchors, num_classes)

    return torch.cat([rows(level) for level in levels], dim=1)


def reference(levels: Sequence[Tensor], call: PyramidCall) -> Tensor:
    rows = as_rows(levels, call.classes)
    weight = None if call.weight is None else call.weight[..., None]
    reduction = "mean" if call.divisor == factors.BY_KEPT else "sum"
    plain = check(Loss.SIGMOID_FOCAL, rows, call.targets, None, call.gamma, reduction, None, weight, call.ignore_index, False, smoothing=call.smoothing)
    same = {name: getattr(call, name) for name in ("alpha", "normalizer", "alpha_positive", "alpha_negative", "divisor", "divisor_value")}
    return _reference.compute(rows, plain.call._replace(**same), reduction)


def has_kernels(device: torch.device) -> bool:
    """Whether the pyramid ops run on tensors of this device."""
    return _native.runs_on(device)


def scaled(gradients: Sequence[Tensor | None], factor: Tensor) -> list[Tensor | None]:
    """Saved gradients times grad_output: in place and handed over unless the graph is kept, untouched where the factor is known to be 1."""
    can_scale = arguments.is_plain(factor) and has_kernels(factor.device)
    if torch.compiler.is_compiling() or keeps_graph() or is_batched(factor) or not can_scale:
        return [None if gradient is None else gradient * factor for gradient in gradients]
    if factor.device.type == "cpu" and _autograd.is_one(factor):  # on the CPU, where reading the factor costs less than the ops
        return list(gradients)
    for gradient in gradients:
        if gradient is not None:  # in rows where it lies in rows; decided on the device: no read, no write when the factor is 1
            rows = gradient if gradient.is_contiguous() else gradient.permute(0, 2, 3, 1)
            with below_in_place():
                ops.scale_(rows, factor)
    return list(gradients)


class _OnePass(torch.autograd.Function):
    """Loss and gradients in one pass; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, call: PyramidCall, *levels: Tensor) -> Tensor:
        with below_autograd():
            loss, gradients = ops.pyramid_loss_and_gradient(levels, *call)
        _save(ctx, call, levels, gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        levels, call, gradients = _saved(ctx)
        if torch.is_grad_enabled():
            return None, *_reference_gradients(levels, call, grad_output)
        return None, *scaled(gradients, grad_output)


class _Recompute(torch.autograd.Function):
    """fp16, whose unscaled gradients underflow, and overwrite_inputs, whose gradients replace the logits."""

    @staticmethod
    def forward(ctx: Any, overwrite: bool, call: PyramidCall, *levels: Tensor) -> Tensor:
        _save(ctx, call, levels, ())
        ctx.overwrite = overwrite
        with below_autograd():
            return ops.pyramid_loss(levels, *call)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if not ctx.overwrite:
            levels, call, _ = _saved(ctx)
            if torch.is_grad_enabled():
                return None, None, *_reference_gradients(levels, call, grad_output)
            return None, None, *ops.pyramid_gradient(levels, *call, _number(grad_output, levels))
        _autograd.claim_overwrite(ctx)
        levels, call, _ = _saved(ctx)
        targets = [level.detach() for level in levels]
        with below_in_place():
            ops.pyramid_gradient_(targets, *call, _number(grad_output, levels), None)
        for level in levels:
            torch.autograd.graph.increment_version(level)  # whoever else saved the logits gets autograd's error
        return None, None, *targets


def _number(grad_output: Tensor, levels: Sequence[Tensor]) -> Tensor:
    return grad_output.to(arguments.accumulation_dtype(levels[0].dtype))


def _save(ctx: Any, call: PyramidCall, levels: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    ctx.save_for_backward(*call.tensors, *levels, *gradients)
    ctx.scalars, ctx.count = call.scalars, len(levels)


def _saved(ctx: Any) -> tuple[Sequence[Tensor], PyramidCall, Sequence[Tensor]]:
    saved, first = ctx.saved_tensors, len(PyramidCall._fields) - len(ctx.scalars)
    return saved[first : first + ctx.count], PyramidCall(*saved[:first], *ctx.scalars), saved[first + ctx.count :]


def _reference_gradients(levels: Sequence[Tensor], call: PyramidCall, grad_output: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(reference(levels, call), levels, grad_output, create_graph=True)


def dispatch(levels: tuple[Tensor, ...], call: PyramidCall, overwrite_inputs: bool) -> Tensor:
    """The loss of checked arguments by the fastest implementation that is right for them."""
    tensors = (*levels, *call[:4])
    if _autograd.needs_graph(call[:4]) or not has_kernels(levels[0].device) or not (
        torch.compiler.is_compiling() or arguments.are_plain(tensors)
    ):
        return reference(levels, call)
    wants_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
    plain = tuple(level if is_native_layout(level) else level.contiguous() for level in levels)
    if torch.compiler.is_compiling():
        constants, numbers = by_tensors.apart(call)
        if wants_gradient and levels[0].dtype is not torch.float16:
            return by_tensors.call("pyramid_loss_and_gradient", numbers, plain, *constants)[0]
        return by_tensors.call("pyramid_loss", numbers, plain, *constants)
    if not wants_gradient:
        return ops.pyramid_loss(plain, *call)
    if overwrite_inputs or levels[0].dtype is torch.float16:
        return _Recompute.apply(overwrite_inputs, call, *plain)
    return _OnePass.apply(call, *plain)

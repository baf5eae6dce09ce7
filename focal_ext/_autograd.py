# Owns: which implementation a call takes, and what autograd keeps and does for it.
# Must not know: formulas, argument rules.
#
#   eager, plain backward            fused: the Functions below
#   torch.compile, torch.export      fused: ops with registered formulas (focal_ext._graphs)
#   torch.func, forward mode, create_graph, torch.jit.trace, other devices and subclasses, and
#   targets, scores, weight, alpha or normalizer that require grad     reference: right to any order, not fast
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _by_tensors as by_tensors
from . import _native as native
from . import _overwritten as overwritten
from . import _reference as reference
from ._call import TENSORS, Call, has_ids, spec_of, tensors_of
from ._formulas import product
from ._factors import tensor_of
from ._levels import has_kernels_for_dtype, is_native_layout
from ._native import ops
from ._torch_private import (
    apply_of,
    below_autograd,
    below_in_place,
    is_batched,
    is_differentiated_forward,
    is_jit_traced,
    keeps_graph,
    unwrap_if_dead,
)

if native.available and not getattr(ops, "registered", False):  # the package may be imported anew, the ops stay
    from . import _graphs  # noqa: F401  registers what compiled graphs need to know of the ops

    setattr(ops, "registered", True)  # noqa: B010  a namespace of ops declares no attributes


def _reference_gradients(ctx: Any, logits: Sequence[Tensor], call: Call, grad_output: Tensor) -> tuple[Tensor, ...]:
    """The gradients as a differentiable graph, for create_graph=True. No second derivative is written by hand."""
    loss = reference.compute(logits, call, ctx.reduction)
    return torch.autograd.grad(loss, logits, grad_output, create_graph=True)


def _save(ctx: Any, call: Call, reduction: str, logits: Sequence[Tensor], gradients: Sequence[Tensor] = ()) -> None:
    """Saves tensors through autograd, so that hooks see them and a change in place is an error, never a wrong
    gradient."""
    # autograd refuses to save tensors of inference mode
    tensors = [t.clone() if t is not None and t.is_inference() else t for t in tensors_of(call)]
    ctx.save_for_backward(*tensors, *logits, *gradients)
    ctx.scalars, ctx.reduction, ctx.count = call[TENSORS:], reduction, len(logits)


def _saved(ctx: Any) -> tuple[Sequence[Tensor], Call]:
    """The logits and the call."""
    saved = ctx.saved_tensors
    return saved[TENSORS : TENSORS + ctx.count], Call(*saved[:TENSORS], *ctx.scalars)


class _OnePass(torch.autograd.Function):
    """Sum or mean with the gradient computed beside the loss; backward only scales it."""

    @staticmethod
    def forward(ctx: FunctionCtx, call: Call, reduction: str, *logits: Tensor) -> Tensor:
        with below_autograd():
            if call.classes:
                loss, gradients = ops.pyramid_loss_and_gradient(logits, *call)
            else:
                loss, *gradients = ops.loss_and_gradient(*logits, *call)
        _save(ctx, call, reduction, logits, gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            return None, None, *_reference_gradients(ctx, *_saved(ctx), grad_output)
        return None, None, *scaled(ctx.saved_tensors[TENSORS + ctx.count :], grad_output)


_apply_one_pass = apply_of(_OnePass)


def _without_repetition(factor: Tensor) -> Tensor:
    """The gradient of ``loss.sum()`` is an expanded number, which is not worth a tensor."""
    if factor.dim() and factor.numel() and not any(factor.stride()):
        return factor[(0,) * factor.dim()]
    return factor.contiguous()


def scaled(gradients: Sequence[Tensor | None], factor: Tensor) -> Sequence[Tensor | None]:
    """Saved gradients times grad_output: in place and handed over unless the graph is kept, untouched where the factor
    is known to be 1."""
    # Compiled autograd cannot trace whether the graph is kept; is_grads_batched=True brings many factors at once.
    if is_compiling() or is_batched(factor) or not arguments.is_plain(factor) or not native.runs_on(factor.device):
        return [None if gradient is None else product(gradient, factor) for gradient in gradients]
    factor = _without_repetition(factor)
    if keeps_graph():
        if not factor.dim():
            return [None if gradient is None else gradient * factor for gradient in gradients]
        gradients = [None if gradient is None else gradient.clone() for gradient in gradients]
    elif factor.is_cpu and not factor.dim() and is_one(factor):  # there reading it costs less than the op
        return gradients
    for gradient in gradients:
        # in the order of its memory; decided on the device: no read, no write when the factor is 1
        if gradient is not None:
            rows = gradient if gradient.is_contiguous() else gradient.permute(0, 2, 3, 1)
            with below_in_place():
                ops.scale_(rows, factor)
    return gradients


class _Recompute(torch.autograd.Function):
    """Unreduced losses, and fp16: an easy negative's unscaled fp16 gradient underflows before a GradScaler's factor
    reaches it."""

    @staticmethod
    def forward(ctx: FunctionCtx, call: Call, reduction: str, *logits: Tensor) -> Tensor:
        _save(ctx, call, reduction, logits)
        return loss_only(logits, call, reduction)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        logits, call = _saved(ctx)
        if torch.is_grad_enabled():
            return None, None, *_reference_gradients(ctx, logits, call, grad_output)
        upstream = _upstream(logits[0], grad_output)
        with nullcontext() if is_compiling() else below_autograd():  # compiled autograd cannot trace it
            if call.classes:
                return None, None, *ops.pyramid_gradient(logits, *call, upstream)
            return None, None, ops.gradient(*logits, *call, upstream)


_apply_recompute = apply_of(_Recompute)


class _OverwriteInForward(torch.autograd.Function):
    """Sum or mean whose gradient replaces the logits in the pass that computes the loss: nothing is computed twice, no
    memory beside them."""

    @staticmethod
    def forward(ctx: Any, call: Call, reduction: str, *logits: Tensor) -> Tensor:
        first, gradients = logits[0], [t.detach() for t in logits]
        dtype = arguments.accumulation_dtype(first.dtype)
        one, loss = tensor_of((1.0,), dtype, first)[0], first.new_empty(first.shape[: call.batch_dims], dtype=dtype)
        with below_autograd(), below_in_place():
            if call.classes:
                ops.pyramid_gradient_(gradients, *call, one, loss)
            elif first.is_contiguous():
                ops.gradient_(*gradients, *call, one, loss)
            else:
                loss, gradient = ops.loss_and_gradient(*gradients, *call)
                gradients[0].copy_(gradient)
        for t in logits:
            torch.autograd.graph.increment_version(t)  # whoever else saved the logits gets autograd's error
        overwritten.remember(logits)
        ctx.save_for_backward(*gradients)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(ONCE_DIFFERENTIABLE)
        gradients = ctx.saved_tensors
        if not all(map(is_native_layout, gradients)):
            return None, None, *(product(gradient, grad_output) for gradient in gradients)
        return None, None, *scaled(gradients, grad_output)


ONCE_DIFFERENTIABLE = (
    "overwrite_inputs=True is once differentiable: the gradient replaces the logits; use overwrite_inputs=False"
)


class _Overwrite(torch.autograd.Function):
    """Unreduced losses and fp16 need grad_output for the gradient, so backward writes it over the logits. It takes no
    memory beside them."""

    @staticmethod
    def forward(ctx: FunctionCtx, call: Call, reduction: str, *logits: Tensor) -> Tensor:
        _save(ctx, call, reduction, logits)
        return loss_only(logits, call, reduction)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        _claim_overwrite(ctx)
        logits, call = _saved(ctx)
        targets, upstream = [t.detach() for t in logits], _upstream(logits[0], grad_output)
        with below_in_place():
            if call.classes:
                ops.pyramid_gradient_(targets, *call, upstream, None)
            elif targets[0].is_contiguous():
                ops.gradient_(*targets, *call, upstream, None)
            else:
                targets[0].copy_(ops.gradient(*targets, *call, upstream))
        for t in logits:
            torch.autograd.graph.increment_version(t)  # whoever else saved the logits gets autograd's error
        return None, None, *targets


def is_one(factor: Tensor) -> bool:
    """Whether a number on the CPU is 1. make_fx lets no number be read of the tensors that it records: False."""
    try:
        return factor.item() == 1  # on the CPU
    except RuntimeError:
        if arguments.is_fx_traced():
            return False
        raise


def _claim_overwrite(ctx: Any) -> None:
    """The first and only backward of a call with overwrite_inputs."""
    if torch.is_grad_enabled():
        raise RuntimeError(ONCE_DIFFERENTIABLE)
    if getattr(ctx, "overwritten", False):
        raise RuntimeError(
            "overwrite_inputs=True: the logits were replaced by the first backward; a second needs "
            "overwrite_inputs=False"
        )
    ctx.overwritten = True


def _upstream(inputs: Tensor, grad_output: Tensor) -> Tensor:
    """grad_output as the ops take it: of the accumulation dtype one number, or one for each index of the batch; of the
    inputs' dtype one per loss."""
    grad_output = _without_repetition(grad_output)
    return grad_output if grad_output.dim() else grad_output.to(arguments.accumulation_dtype(inputs.dtype))


def loss_only(logits: Sequence[Tensor], call: Call, reduction: str) -> Tensor:
    with below_autograd():
        if call.classes:
            return ops.pyramid_loss_map(logits, *call) if reduction == "none" else ops.pyramid_loss(logits, *call)
        return ops.loss_map(*logits, *call) if reduction == "none" else ops.loss(*logits, *call)


def is_watched_by_autograd() -> bool:
    """Whether a transform, forward-mode AD, torch.jit.trace or torch.onnx.export runs the call. Each of these takes it
    apart, or asks for derivatives that no kernel has."""
    return is_differentiated_forward() or (torch.onnx.is_in_onnx_export() if is_compiling() else is_jit_traced())


def wants_more(call: Call) -> bool:
    """Whether something besides the logits wants a gradient."""
    if torch.is_grad_enabled():
        for t in tensors_of(call):
            if t is not None and t.requires_grad:
                return True
    return False


def has_kernel_for_levels(logits: Sequence[Tensor], call: Call) -> bool:
    """Whether the ops read the levels of this loss in place."""
    first, spec = logits[0], spec_of(call)
    if first.device.type == "cpu":
        return True
    of_classes = call.weight is not None and call.weight.dim() == 1
    if not spec.has_cuda_levels or of_classes or not has_kernels_for_dtype(first):
        return False
    return not spec.is_per_row or (has_ids(logits, call) and all(level.is_contiguous() for level in logits))


def _compiled(logits: tuple[Tensor, ...], call: Call, reduction: str, wants_gradient: bool) -> Tensor:
    """The route of torch.compile and torch.export: plain op calls that a graph can hold."""
    constants, numbers = by_tensors.apart(call)
    given, layout = (logits, "pyramid_") if call.classes else (logits[0], "")
    if reduction == "none":
        return by_tensors.call(f"{layout}loss_map", numbers, given, *constants)
    if wants_gradient and logits[0].dtype is not torch.float16:
        return by_tensors.call(f"{layout}loss_and_gradient", numbers, given, *constants)[0]
    return by_tensors.call(f"{layout}loss", numbers, given, *constants)


def _by_falling_stride(strides: tuple[int, ...]) -> list[int]:
    """Dimensions in the order of memory. An insertion sort: torch.compile cannot trace sorted() over the strides of
    dynamic shapes."""
    order: list[int] = []
    for d, stride in enumerate(strides):
        at = len(order)
        while at > 0 and strides[order[at - 1]] < stride:
            at -= 1
        order.insert(at, d)
    return order


def _as_rows(inputs: Tensor, call: Call) -> tuple[Tensor, Call, list[int] | None]:
    """Contiguous logits without a copy where the memory holds rows in another order (a permuted batch), else with one
    copy.

    Returns the permutation that was applied, to be undone on an unreduced loss.
    """
    order = [*_by_falling_stride(inputs.stride()[:-1]), inputs.dim() - 1]
    rows = inputs.permute(order)
    weight_is_simple = call.weight is None or call.weight.shape[0] == 1
    if not rows.is_contiguous() or not weight_is_simple or order[: call.batch_dims] != list(range(call.batch_dims)):
        return inputs.contiguous(), call, None
    targets = call.targets.permute(order if call.targets.dim() == inputs.dim() else order[:-1]).contiguous()
    scores = None if call.scores is None else call.scores.view(inputs.shape[:-1]).permute(order[:-1]).reshape(-1)
    return rows, call._replace(targets=targets, scores=scores), order


def dispatch(
    logits: tuple[Tensor, ...], call: Call, reduction: str, overwrite_inputs: bool, plain: bool = False
) -> Tensor:
    """The loss of checked arguments by the fastest implementation that is right for them; `plain` as in Request."""
    first = logits[0]
    compiling = not plain and is_compiling()
    if overwritten.happened and not arguments.is_traced():
        overwritten.check([unwrap_if_dead(t) for t in logits])
    can_fuse = plain or (
        not is_watched_by_autograd() and (compiling or arguments.are_plain((*logits, *tensors_of(call))))
    )
    if not can_fuse or wants_more(call) or not native.runs_on(first.device):
        return reference.compute(logits, call, reduction)
    if call.classes and not has_kernel_for_levels(logits, call):
        rows, call = reference.in_rows(logits, call)
        return dispatch((rows,), call, reduction, False)
    wants_gradient = torch.is_grad_enabled() and (
        any(t.requires_grad for t in logits) if call.classes else first.requires_grad
    )
    overwrite, order = overwrite_inputs and wants_gradient and not compiling, None
    if call.classes:
        logits = tuple(level if is_native_layout(level) else level.contiguous() for level in logits)
    elif not (plain or first.is_contiguous()):
        rows, in_order, order = _as_rows(first, call)
        if order is not None or not overwrite:  # a copy could not be overwritten in the inputs' place
            logits, call = (rows,), in_order
    if compiling:
        loss = _compiled(logits, call, reduction, wants_gradient)
    elif not wants_gradient:
        loss = loss_only(logits, call, reduction)
    elif overwrite:
        at_once = reduction != "none" and first.dtype is not torch.float16
        loss = (_OverwriteInForward if at_once else _Overwrite).apply(call, reduction, *logits)
    elif reduction == "none" or first.dtype is torch.float16:
        loss = _apply_recompute(call, reduction, *map(unwrap_if_dead, logits))
    else:
        loss = _apply_one_pass(call, reduction, *map(unwrap_if_dead, logits))
    if order is not None and reduction == "none":
        loss = loss.permute([order.index(d) for d in range(loss.dim())])  # the classes are last before and after
    return loss

# Owns: which implementation a call takes, and what autograd keeps and does for it.
# Must not know: formulas, argument rules.
#
#   eager, plain backward            fused: the Functions below
#   torch.compile, torch.export      fused: ops with registered formulas (focal_ext._graphs)
#   torch.func, forward mode, create_graph, torch.jit.trace, other devices and subclasses, and
#   targets, scores, weight, alpha or normalizer that require grad     reference: right to any order, not fast
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _by_tensors as by_tensors
from . import _native as native
from . import _reference as reference
from ._call import Call
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


def _reference_gradient(ctx: Any, inputs: Tensor, call: Call, grad_output: Tensor) -> Tensor:
    """The gradient as a differentiable graph, for create_graph=True. No second derivative is written by hand."""
    loss = reference.compute(inputs, call, ctx.reduction)
    return torch.autograd.grad(loss, inputs, grad_output, create_graph=True)[0]


def _save(ctx: Any, call: Call, reduction: str, *logits: Tensor) -> None:
    """Saves tensors through autograd, so that hooks see them and a change in place is an error, never a wrong gradient."""
    tensors = [t.clone() if t is not None and t.is_inference() else t for t in call.tensors]  # autograd refuses to save those
    ctx.save_for_backward(*logits, *tensors)
    ctx.scalars, ctx.reduction = call.scalars, reduction


class _OnePass(torch.autograd.Function):
    """Sum or mean with the gradient computed beside the loss; backward only scales it."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, call: Call, reduction: str, given: int | None) -> Tensor:
        with below_autograd():
            loss, gradient = ops.loss_and_gradient(inputs, *call[:given])
        _save(ctx, call, reduction, gradient, inputs)
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None, None]:
        gradient, inputs, *tensors = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _reference_gradient(ctx, inputs, Call(*tensors, *ctx.scalars), grad_output), None, None, None
        # Compiled autograd cannot trace whether the graph is kept; is_grads_batched=True brings many factors at once.
        if is_compiling() or keeps_graph() or is_batched(grad_output) or not arguments.is_plain(grad_output):
            return gradient * grad_output, None, None, None
        if gradient.is_cpu and is_one(grad_output):  # on the CPU, where reading the factor costs less than the op
            return gradient, None, None, None
        with below_in_place():
            ops.scale_(gradient, grad_output)  # decided on the device: no read, no write when the factor is 1
        return gradient, None, None, None


_apply_one_pass = apply_of(_OnePass)


class _Recompute(torch.autograd.Function):
    """Unreduced losses, and fp16: an easy negative's unscaled fp16 gradient underflows before a GradScaler's factor reaches it."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, call: Call, reduction: str) -> Tensor:
        _save(ctx, call, reduction, inputs)
        return loss_only(inputs, call, reduction)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        inputs, *tensors = ctx.saved_tensors
        call = Call(*tensors, *ctx.scalars)
        if torch.is_grad_enabled():
            return _reference_gradient(ctx, inputs, call, grad_output), None, None
        return ops.gradient(inputs, *call, _upstream(inputs, grad_output)), None, None


class _Overwrite(torch.autograd.Function):
    """Backward writes the gradient over the logits: no memory beside them."""

    @staticmethod
    def forward(ctx: FunctionCtx, inputs: Tensor, call: Call, reduction: str) -> Tensor:
        _save(ctx, call, reduction, inputs)
        return loss_only(inputs, call, reduction)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        claim_overwrite(ctx)
        inputs, *tensors = ctx.saved_tensors
        target = inputs.detach()
        call, upstream = Call(*tensors, *ctx.scalars), _upstream(inputs, grad_output)
        if target.is_contiguous():
            with below_in_place():
                ops.gradient_(target, *call, upstream)
        else:
            target.copy_(ops.gradient(target, *call, upstream))
        torch.autograd.graph.increment_version(inputs)  # whoever else saved the logits gets autograd's error
        return target, None, None


def is_one(factor: Tensor) -> bool:
    """Of a number on the CPU; make_fx lets none be read of the tensors that it records."""
    try:
        return factor.item() == 1  # on the CPU
    except RuntimeError:
        if arguments.is_fx_traced():
            return False
        raise


def claim_overwrite(ctx: Any) -> None:
    """The first and only backward of a call with overwrite_inputs."""
    if torch.is_grad_enabled():
        raise RuntimeError("overwrite_inputs=True is once differentiable: its backward replaces the logits; use overwrite_inputs=False")
    if getattr(ctx, "overwritten", False):
        raise RuntimeError("overwrite_inputs=True: the logits were replaced by the first backward; a second needs overwrite_inputs=False")
    ctx.overwritten = True


def _upstream(inputs: Tensor, grad_output: Tensor) -> Tensor:
    """grad_output as the ops take it: one number of the accumulation dtype, or one of the inputs' dtype per logit.

    The gradient of ``loss.sum()`` is an expanded number, which is not worth a tensor of the size of the logits.
    """
    if grad_output.dim() and grad_output.numel() and not any(grad_output.stride()):
        grad_output = grad_output[(0,) * grad_output.dim()]
    if grad_output.dim() == 0 and inputs.dim():
        return grad_output.to(arguments.accumulation_dtype(inputs.dtype))
    return grad_output.contiguous()


def loss_only(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    with below_autograd():
        return ops.loss_map(inputs, *call) if reduction == "none" else ops.loss(inputs, *call)


def needs_graph(tensors: Sequence[Tensor | None], traced: bool = True) -> bool:
    """Whether a transform, torch.jit.trace or torch.onnx.export runs the call, or something besides the logits wants a gradient; `traced`: whether
    a tracer may run it."""
    if is_differentiated_forward() or (traced and (torch.onnx.is_in_onnx_export() if is_compiling() else is_jit_traced())):
        return True
    if torch.is_grad_enabled():
        for t in tensors:
            if t is not None and t.requires_grad:
                return True
    return False


def _compiled(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    """The route of torch.compile and torch.export: plain op calls that a graph can hold."""
    constants, numbers = by_tensors.apart(call)
    if reduction == "none":
        return by_tensors.call("loss_map", numbers, inputs, *constants)
    if inputs.requires_grad and torch.is_grad_enabled() and inputs.dtype is not torch.float16:
        return by_tensors.call("loss_and_gradient", numbers, inputs, *constants)[0]
    return by_tensors.call("loss", numbers, inputs, *constants)


def _by_falling_stride(strides: tuple[int, ...]) -> list[int]:
    """Dimensions in the order of memory. An insertion sort: torch.compile cannot trace sorted() over the strides of dynamic shapes."""
    order: list[int] = []
    for d, stride in enumerate(strides):
        at = len(order)
        while at > 0 and strides[order[at - 1]] < stride:
            at -= 1
        order.insert(at, d)
    return order


def _as_rows(inputs: Tensor, call: Call) -> tuple[Tensor, Call, list[int] | None]:
    """Contiguous logits without a copy where the memory holds rows in another order (a permuted batch), else with one copy.

    Returns the permutation that was applied, to be undone on an unreduced loss.
    """
    order = [*_by_falling_stride(inputs.stride()[:-1]), inputs.dim() - 1]
    rows = inputs.permute(order)
    weight_is_simple = call.weight is None or call.weight.shape[0] == 1
    if not rows.is_contiguous() or not weight_is_simple:
        return inputs.contiguous(), call, None
    targets = call.targets.permute(order if call.targets.dim() == inputs.dim() else order[:-1]).contiguous()
    scores = None if call.scores is None else call.scores.view(inputs.shape[:-1]).permute(order[:-1]).reshape(-1)
    return rows, call._replace(targets=targets, scores=scores), order


def dispatch(inputs: Tensor, call: Call, reduction: str, overwrite_inputs: bool, ordinary: int | None = None) -> Tensor:
    """The loss of checked arguments by the fastest implementation that is right for them."""
    if (needs_graph(call[:2], traced=False) if ordinary else needs_graph(call[:5])) or not native.runs_on(inputs.device):
        return reference.compute(inputs, call, reduction)
    compiling = not ordinary and is_compiling()
    if not (ordinary or compiling or arguments.are_plain((inputs, *call.tensors))):
        return reference.compute(inputs, call, reduction)
    wants_gradient = inputs.requires_grad and torch.is_grad_enabled()
    overwrite = overwrite_inputs and wants_gradient and not compiling
    order = None
    if not (ordinary or inputs.is_contiguous()):
        rows = _as_rows(inputs, call)
        if rows[2] is not None or not overwrite:  # a copy could not be overwritten in the inputs' place
            inputs, call, order = rows
    if compiling:
        loss = _compiled(inputs, call, reduction)
    elif not wants_gradient:
        loss = loss_only(inputs, call, reduction)
    elif overwrite:
        loss = _Overwrite.apply(inputs, call, reduction)
    elif reduction == "none" or inputs.dtype is torch.float16:
        loss = _Recompute.apply(inputs, call, reduction)
    else:
        loss = _apply_one_pass(unwrap_if_dead(inputs), call, reduction, ordinary)
    if order is not None and reduction == "none":
        loss = loss.permute([order.index(d) for d in range(loss.dim())])  # the classes are last before and after
    return loss

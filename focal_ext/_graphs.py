# Owns: what torch needs to know of the ops: shapes of results for compiled graphs, autograd formulas, what is written in place. Importing it
# registers them.
# Must not know: arguments, kernels; eager calls, which go through focal_ext._autograd, where it can be seen whether a graph is kept.
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ._arguments import accumulation_dtype
from ._call import Call, PyramidCall
from ._native import IN_PLACE_OPS, ops
from ._torch_private import below_in_place, in_place_keys

register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd


def refuse_create_graph() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "focal_ext: a compiled or exported loss is once differentiable; for create_graph=True call it outside the compiled"
            " function, or use focal_ext.reference in it"
        )


def _check_devices(like: Tensor, others: Sequence[Any]) -> None:
    """Tensors on meta beside real ones come here, not to the kernels: a result on the CPU would be memory that nothing has written."""
    for t in others:
        if isinstance(t, Tensor) and t.device != like.device:
            raise ValueError(f"focal_ext: all tensors of an op must be on one device, got {like.device} and {t.device}")


def _number(inputs: Tensor) -> Tensor:
    return inputs.new_empty((), dtype=accumulation_dtype(inputs.dtype))


# ---- logits in rows: inputs, then the fields of a Call ------------------------------------------------------------------------------


def _like_logits(inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format)


@register_fake("focal_ext::loss")
def _(inputs: Tensor, *call: Any) -> Tensor:
    _check_devices(inputs, call)
    return _number(inputs)


@register_fake("focal_ext::loss_and_gradient")
def _(inputs: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    _check_devices(inputs, call)
    return _number(inputs), _like_logits(inputs)


@register_fake("focal_ext::loss_map")
def _(inputs: Tensor, *call: Any) -> Tensor:
    _check_devices(inputs, call)
    return inputs.new_empty(inputs.shape[:-1]) if Call(*call).is_per_row else _like_logits(inputs)


@register_fake("focal_ext::gradient")
def _(inputs: Tensor, *call_and_grad_output: Any) -> Tensor:
    _check_devices(inputs, call_and_grad_output)
    return _like_logits(inputs)


@register_fake("focal_ext::gradient_")
def _(inputs: Tensor, *call_and_grad_output: Any) -> None:
    _check_devices(inputs, call_and_grad_output)


@register_fake("focal_ext::scale_")
def _(gradient: Tensor, factor: Tensor) -> None:
    _check_devices(gradient, (factor,))


@register_fake("focal_ext::first_bad_id")
def _(targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> Tensor:
    return targets.new_empty((), dtype=torch.int64)


NO_GRADIENTS = [None] * len(Call._fields)


def save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])


def scale_gradient(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    return ctx.saved_tensors[0] * grad_loss, *NO_GRADIENTS


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call = Call(*inputs[1:])
    ctx.save_for_backward(inputs[0], *call.tensors)
    ctx.scalars = call.scalars


def recompute_gradient(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_create_graph()
    inputs, *tensors = ctx.saved_tensors
    # A number is of the accumulation dtype, also where it is the loss of a single row.
    grad_output = grad_output.contiguous() if grad_output.dim() else grad_output.to(accumulation_dtype(inputs.dtype))
    return ops.gradient(inputs, *tensors, *ctx.scalars, grad_output), *NO_GRADIENTS


register_autograd("focal_ext::loss_and_gradient", scale_gradient, setup_context=save_gradient)
register_autograd("focal_ext::loss", recompute_gradient, setup_context=save_inputs)
register_autograd("focal_ext::loss_map", recompute_gradient, setup_context=save_inputs)


# ---- pyramids: levels, then the fields of a PyramidCall -----------------------------------------------------------------------------


@register_fake("focal_ext::pyramid_loss")
def _(levels: list[Tensor], *call: Any) -> Tensor:
    _check_devices(levels[0], (*levels, *call))
    return _number(levels[0])


@register_fake("focal_ext::pyramid_loss_and_gradient")
def _(levels: list[Tensor], *call: Any) -> tuple[Tensor, list[Tensor]]:
    _check_devices(levels[0], (*levels, *call))
    return _number(levels[0]), [torch.empty_like(level) for level in levels]


@register_fake("focal_ext::pyramid_gradient")
def _(levels: list[Tensor], *call_and_grad_output: Any) -> list[Tensor]:
    _check_devices(levels[0], (*levels, *call_and_grad_output))
    return [torch.empty_like(level) for level in levels]


@register_fake("focal_ext::pyramid_gradient_")
def _(levels: list[Tensor], *call_grad_output_and_loss: Any) -> None:
    _check_devices(levels[0], (*levels, *call_grad_output_and_loss))


NO_PYRAMID_GRADIENTS = [None] * len(PyramidCall._fields)


def save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.mark_non_differentiable(*output[1])
    ctx.save_for_backward(*output[1])


def scale_gradients(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    return [gradient * grad_loss for gradient in ctx.saved_tensors], *NO_PYRAMID_GRADIENTS


def save_levels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call = PyramidCall(*inputs[1:])
    ctx.save_for_backward(*call.tensors, *inputs[0])
    ctx.scalars = call.scalars


def recompute_gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_create_graph()
    tensors = len(PyramidCall._fields) - len(ctx.scalars)
    call, levels = ctx.saved_tensors[:tensors], list(ctx.saved_tensors[tensors:])
    return ops.pyramid_gradient(levels, *call, *ctx.scalars, grad_output.contiguous()), *NO_PYRAMID_GRADIENTS


register_autograd("focal_ext::pyramid_loss_and_gradient", scale_gradients, setup_context=save_gradients)
register_autograd("focal_ext::pyramid_loss", recompute_gradients, setup_context=save_levels)


# ---- what torch's own ops in place do before they write ------------------------------------------------------------------------------


def _in_place(op: Callable[..., None]) -> Callable[..., None]:
    written = [i for i, argument in enumerate(op._schema.arguments) if argument.alias_info is not None and argument.alias_info.is_write]  # type: ignore[attr-defined]

    def announce(keys: Any, *given: Any) -> None:
        tensors = [t for i in written for t in (given[i] if isinstance(given[i], (list, tuple)) else [given[i]]) if t is not None]
        for t in tensors:
            if t.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(f"{op}: writes over a tensor that requires grad, and has no derivative; pass t.detach(), or call it under torch.no_grad()")
            if t.is_inference():
                raise RuntimeError(f"{op}: writes over an inference tensor outside torch.inference_mode(); pass t.clone()")
            torch.autograd.graph.increment_version(t)  # whoever saved it gets autograd's error
        with below_in_place():
            op.redispatch(keys & in_place_keys, *given)  # type: ignore[attr-defined]

    return announce


if in_place_keys is not None and below_in_place is not nullcontext:
    registrations = torch.library.Library("focal_ext", "IMPL")  # as long as it lives
    for name in IN_PLACE_OPS:
        registrations.impl(name, _in_place(getattr(ops, name).default), "ADInplaceOrView", with_keyset=True)

# Owns: what torch needs to know of the ops: shapes of results for compiled graphs, autograd formulas, what is written in place. Importing it
# registers them.
# Must not know: arguments, kernels; eager calls, which go through focal_ext._autograd, where it can be seen whether a graph is kept.
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _by_tensors as by_tensors
from ._arguments import accumulation_dtype
from ._call import Call, PyramidCall, is_per_row
from ._formulas import no_gradients, refuse_create_graph
from ._native import IN_PLACE_OPS, ops, registrations
from ._torch_private import below_in_place, in_place_keys, register_autograd, register_fake

F = TypeVar("F", bound=Callable[..., Any])


def fake_of(name: str) -> Callable[[F], F]:
    def register(fake: F) -> F:
        register_fake(f"focal_ext::{name}", fake, registrations)
        return fake

    return register


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


@fake_of("loss")
def _(inputs: Tensor, *call: Any) -> Tensor:
    _check_devices(inputs, call)
    return _number(inputs)


@fake_of("loss_and_gradient")
def _(inputs: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
    _check_devices(inputs, call)
    return _number(inputs), _like_logits(inputs)


@fake_of("loss_map")
def _(inputs: Tensor, *call: Any) -> Tensor:
    _check_devices(inputs, call)
    return inputs.new_empty(inputs.shape[:-1]) if is_per_row(Call(*call)) else _like_logits(inputs)


@fake_of("gradient")
def _(inputs: Tensor, *call_and_grad_output: Any) -> Tensor:
    _check_devices(inputs, call_and_grad_output)
    return _like_logits(inputs)


@fake_of("gradient_")
def _(inputs: Tensor, *call_and_grad_output: Any) -> None:
    _check_devices(inputs, call_and_grad_output)


@fake_of("scale_")
def _(gradient: Tensor, factor: Tensor) -> None:
    _check_devices(gradient, (factor,))


@fake_of("first_bad_id")
def _(targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> Tensor:
    return targets.new_empty((), dtype=torch.int64)


def save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.rest = no_gradients(inputs[1:])


def scale_gradient(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    return ctx.saved_tensors[0] * grad_loss, *ctx.rest


def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call, numbers = Call(*inputs[1 : 1 + len(Call._fields)]), by_tensors.numbers_of(inputs)
    ctx.save_for_backward(*numbers.tensors, inputs[0], *call.tensors)
    ctx.scalars, ctx.places, ctx.rest = call.scalars, numbers.places, no_gradients(inputs[1:])


def recompute_gradient(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_create_graph()
    numbers, (inputs, *tensors) = by_tensors.numbers_saved(ctx)
    # A number is of the accumulation dtype, also where it is the loss of a single row.
    grad_output = grad_output.contiguous() if grad_output.dim() else grad_output.to(accumulation_dtype(inputs.dtype))
    return by_tensors.call("gradient", numbers, inputs, *tensors, *ctx.scalars, grad_output), *ctx.rest


def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("focal_ext: a gradient has no derivative of its own; for second derivatives use focal_ext.reference with create_graph=True")


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "loss_and_gradient": (scale_gradient, save_gradient),
    "loss": (recompute_gradient, save_inputs),
    "loss_map": (recompute_gradient, save_inputs),
    "gradient": (refuse, save_nothing),
}


# ---- pyramids: levels, then the fields of a PyramidCall -----------------------------------------------------------------------------


@fake_of("pyramid_loss")
def _(levels: list[Tensor], *call: Any) -> Tensor:
    _check_devices(levels[0], (*levels, *call))
    return _number(levels[0])


@fake_of("pyramid_loss_and_gradient")
def _(levels: list[Tensor], *call: Any) -> tuple[Tensor, list[Tensor]]:
    _check_devices(levels[0], (*levels, *call))
    return _number(levels[0]), [torch.empty_like(level) for level in levels]


@fake_of("pyramid_gradient")
def _(levels: list[Tensor], *call_and_grad_output: Any) -> list[Tensor]:
    _check_devices(levels[0], (*levels, *call_and_grad_output))
    return [torch.empty_like(level) for level in levels]


@fake_of("pyramid_gradient_")
def _(levels: list[Tensor], *call_grad_output_and_loss: Any) -> None:
    _check_devices(levels[0], (*levels, *call_grad_output_and_loss))


def save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.mark_non_differentiable(*output[1])
    ctx.save_for_backward(*output[1])
    ctx.rest = no_gradients(inputs[1:])


def scale_gradients(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    return [gradient * grad_loss for gradient in ctx.saved_tensors], *ctx.rest


def save_levels(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call, numbers = PyramidCall(*inputs[1 : 1 + len(PyramidCall._fields)]), by_tensors.numbers_of(inputs)
    ctx.save_for_backward(*numbers.tensors, *call.tensors, *inputs[0])
    ctx.scalars, ctx.places, ctx.rest = call.scalars, numbers.places, no_gradients(inputs[1:])


def recompute_gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_create_graph()
    numbers, saved = by_tensors.numbers_saved(ctx)
    tensors = len(PyramidCall._fields) - len(ctx.scalars)
    call, levels = saved[:tensors], list(saved[tensors:])
    return by_tensors.call("pyramid_gradient", numbers, levels, *call, *ctx.scalars, grad_output.contiguous()), *ctx.rest


FORMULAS |= {
    "pyramid_loss_and_gradient": (scale_gradients, save_gradients),
    "pyramid_loss": (recompute_gradients, save_levels),
    "pyramid_gradient": (refuse, save_nothing),
}

for name, formula in FORMULAS.items():
    register_autograd(getattr(ops, name).default, *formula, registrations)
    if by_tensors.define(name, registrations):
        register_autograd(getattr(ops, name + by_tensors.SUFFIX).default, *formula, registrations)


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
    for name in IN_PLACE_OPS:
        registrations.impl(name, _in_place(getattr(ops, name).default), "ADInplaceOrView", with_keyset=True)

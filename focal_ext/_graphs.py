# Owns: what torch needs to know of the ops: shapes of results for compiled graphs, autograd formulas, what is written
# in place. Importing it registers them.
# Must not know: arguments, kernels; eager calls, which go through focal_ext._autograd, where it can be seen whether a
# graph is kept.
from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import _by_tensors as by_tensors
from ._arguments import accumulation_dtype
from ._call import BATCH_DIMS, TENSORS, Call, spec_of
from ._formulas import no_gradients, product, refuse_create_graph
from ._native import IN_PLACE_OPS, ops, registrations
from ._torch_private import below_in_place, in_place_keys, register_autograd, register_fake

F = TypeVar("F", bound=Callable[..., Any])


def fake_of(name: str) -> Callable[[F], F]:
    def register(fake: F) -> F:
        register_fake(f"focal_ext::{name}", fake, registrations)
        return fake

    return register


def _check_devices(like: Tensor, others: Sequence[Any]) -> None:
    """Tensors on meta beside real ones come here, not to the kernels: a result on the CPU would be memory that nothing
    has written."""
    for t in others:
        if isinstance(t, Tensor) and t.device != like.device:
            raise ValueError(f"focal_ext: all tensors of an op must be on one device, got {like.device} and {t.device}")


def _reduced(inputs: Tensor, call: Sequence[Any]) -> Tensor:
    return inputs.new_empty(inputs.shape[: call[BATCH_DIMS]], dtype=accumulation_dtype(inputs.dtype))


def _like_logits(logits: Any) -> Any:
    """Gradients: of rows contiguous, of levels each in its own memory format."""
    if isinstance(logits, Tensor):
        return torch.empty_like(logits, memory_format=torch.contiguous_format)
    return [torch.empty_like(level) for level in logits]


# ---- each op over both layouts: logits, the fields of a Call, and what else it takes ---------------------


def _fake_loss(logits: Any, *call: Any) -> Tensor:
    return _reduced(_first(logits, call), call)


def _fake_loss_and_gradient(logits: Any, *call: Any) -> tuple[Tensor, Any]:
    return _reduced(_first(logits, call), call), _like_logits(logits)


def _fake_gradient(logits: Any, *call_and_grad_output: Any) -> Any:
    _first(logits, call_and_grad_output)
    return _like_logits(logits)


def _fake_in_place(logits: Any, *call_and_results: Any) -> None:
    _first(logits, call_and_results)


def _first(logits: Any, others: Sequence[Any]) -> Tensor:
    """The logits, or their first level, all on one device."""
    levels = [logits] if isinstance(logits, Tensor) else logits
    _check_devices(levels[0], (*levels, *others))
    return levels[0]


for layout in ("", "pyramid_"):
    fake_of(f"{layout}loss")(_fake_loss)
    fake_of(f"{layout}loss_and_gradient")(_fake_loss_and_gradient)
    fake_of(f"{layout}gradient")(_fake_gradient)
    fake_of(f"{layout}gradient_")(_fake_in_place)


@fake_of("loss_map")
def _(inputs: Tensor, *call: Any) -> Tensor:
    _check_devices(inputs, call)
    return inputs.new_empty(inputs.shape[:-1]) if spec_of(Call(*call)).is_per_row else _like_logits(inputs)


@fake_of("pyramid_loss_map")
def _(levels: list[Tensor], *call: Any) -> Tensor:
    first, classes = _first(levels, call), Call(*call).classes
    anchors = sum(level.shape[1] // classes * level.shape[2:].numel() for level in levels)
    return first.new_empty((first.shape[0], anchors)) if spec_of(Call(*call)).is_per_row else torch.empty_like(first)


@fake_of("scale_")
def _(gradient: Tensor, factor: Tensor) -> None:
    _check_devices(gradient, (factor,))


@fake_of("first_bad_id")
def _(targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> Tensor:
    return targets.new_empty((), dtype=torch.int64)


def save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Any]) -> None:
    ctx.is_list = not isinstance(output[1], Tensor)
    gradients = output[1] if ctx.is_list else [output[1]]
    ctx.mark_non_differentiable(*gradients)
    ctx.save_for_backward(*gradients)
    ctx.rest = no_gradients(inputs[1:])


def scale_gradients(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    gradients = [product(gradient, grad_loss) for gradient in ctx.saved_tensors]
    return gradients if ctx.is_list else gradients[0], *ctx.rest


def save_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    call, numbers = Call(*inputs[1 : 1 + by_tensors.FIELDS]), by_tensors.numbers_of(inputs)
    ctx.is_list = not isinstance(inputs[0], Tensor)
    ctx.save_for_backward(*numbers.tensors, *call[:TENSORS], *(inputs[0] if ctx.is_list else [inputs[0]]))
    ctx.scalars, ctx.places, ctx.rest = call[TENSORS:], numbers.places, no_gradients(inputs[1:])


def recompute_gradients(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
    refuse_create_graph()
    numbers, saved = by_tensors.numbers_saved(ctx)
    tensors, logits = saved[:TENSORS], saved[TENSORS:]
    # A number is of the accumulation dtype, also where it is the loss of a single row.
    grad_output = grad_output.contiguous() if grad_output.dim() else grad_output.to(accumulation_dtype(logits[0].dtype))
    name, given = ("pyramid_gradient", logits) if ctx.is_list else ("gradient", logits[0])
    return by_tensors.call(name, numbers, given, *tensors, *ctx.scalars, grad_output), *ctx.rest


def save_nothing(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    pass


def refuse(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError(
        "focal_ext: a gradient has no derivative of its own; for second derivatives use focal_ext.reference with "
        "create_graph=True"
    )


FORMULAS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    f"{layout}{name}": formula
    for layout in ("", "pyramid_")
    for name, formula in (
        ("loss_and_gradient", (scale_gradients, save_gradients)),
        ("loss", (recompute_gradients, save_logits)),
        ("gradient", (refuse, save_nothing)),
    )
} | dict.fromkeys(("loss_map", "pyramid_loss_map"), (recompute_gradients, save_logits))

for name, formula in FORMULAS.items():
    register_autograd(getattr(ops, name).default, *formula, registrations)
    if by_tensors.define(name, registrations):
        register_autograd(getattr(ops, name + by_tensors.SUFFIX).default, *formula, registrations)


# ---- what torch's own ops in place do before they write --------------------------------------------------


def _in_place(op: Callable[..., None]) -> Callable[..., None]:
    aliases = [argument.alias_info for argument in op._schema.arguments]  # type: ignore[attr-defined]
    written = [i for i, alias in enumerate(aliases) if alias is not None and alias.is_write]

    def announce(keys: Any, *given: Any) -> None:
        tensors = [
            t
            for i in written
            if i < len(given)
            for t in (given[i] if isinstance(given[i], (list, tuple)) else [given[i]])
            if t is not None
        ]
        for t in tensors:
            if t.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    f"{op}: writes over a tensor that requires grad, and has no derivative; pass t.detach(), or call "
                    "it under torch.no_grad()"
                )
            if t.is_inference():
                raise RuntimeError(
                    f"{op}: writes over an inference tensor outside torch.inference_mode(); pass t.clone()"
                )
            torch.autograd.graph.increment_version(t)  # whoever saved it gets autograd's error
        with below_in_place():
            op.redispatch(keys & in_place_keys, *given)  # type: ignore[attr-defined]

    return announce


if in_place_keys is not None and below_in_place is not nullcontext:
    for name in IN_PLACE_OPS:
        registrations.impl(name, _in_place(getattr(ops, name).default), "ADInplaceOrView", with_keyset=True)

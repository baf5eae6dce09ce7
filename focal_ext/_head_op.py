# Owns: the convolution fused with its loss as one op, which compiled graphs hold: its chunks would lie in their memory
# side by side.
# Must not know: formulas, kernels, how chunks are cut, eager calls.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import _by_tensors as by_tensors
from ._arguments import accumulation_dtype
from ._call import Call
from ._chunks import Geometry
from ._formulas import no_gradients, refuse_create_graph
from ._native import ops, registrations
from ._sweep import Head, Sweep
from ._torch_private import register_autograd, register_fake

NAME = "conv_loss_and_gradients"
FIELDS = len(Call._fields)

# In this order: features, weight and bias of the convolution; the fields of a Call; the convolution's geometry; which
# gradients are wanted, of weight, bias and each level; the numbers that come as tensors. A gradient that is not wanted
# comes back empty.
SCHEMA = (
    "(Tensor[] features, Tensor conv_weight, Tensor? conv_bias, Tensor targets, Tensor? scores, Tensor? weight, "
    "Tensor? alpha, "
    "Tensor? normalizer, int loss, float[] numbers, int? ignore_index, int divisor, int classes, int batch_dims, "
    "int[] geometry, int memory_budget, bool[] wanted, "
    "Tensor[] by_tensors, int[] places) -> (Tensor, Tensor[])"
)


def _run(
    features: list[Tensor], conv_weight: Tensor, conv_bias: Tensor | None, *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    *fields, geometry, memory_budget, wanted, numbers, places = rest
    call = by_tensors.filled(Call(*fields), numbers, places)
    head = Head(Geometry(*(tuple(geometry[i : i + 2]) for i in (0, 2, 4))), memory_budget)
    sweep = Sweep(head, call, conv_weight, conv_bias, wanted)
    loss = sweep.run(features)
    return loss, [conv_weight.new_empty(0) if gradient is None else gradient for gradient in sweep.gradients()]


def _fake(
    features: list[Tensor], conv_weight: Tensor, conv_bias: Tensor | None, *rest: Any
) -> tuple[Tensor, list[Tensor]]:
    given = (conv_weight, conv_bias, *features)
    gradients = [
        torch.empty_like(t) if t is not None and want else conv_weight.new_empty(0)
        for t, want in zip(given, rest[FIELDS + 2])
    ]
    return conv_weight.new_empty((), dtype=accumulation_dtype(conv_weight.dtype)), gradients


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, list[Tensor]]) -> None:
    ctx.mark_non_differentiable(*output[1])
    ctx.save_for_backward(*output[1])
    ctx.wanted, ctx.rest = inputs[3 + FIELDS + 2], no_gradients(inputs[3:])


def _scale(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
    refuse_create_graph()
    of_weight, of_bias, *of_features = [
        g * grad_loss if want else None for g, want in zip(ctx.saved_tensors, ctx.wanted)
    ]
    return of_features, of_weight, of_bias, *ctx.rest


if not hasattr(ops, NAME):  # the package may be imported anew, the ops stay
    registrations.define(NAME + SCHEMA)
    registrations.impl(NAME, _run, "CompositeExplicitAutograd")
    register_fake(f"focal_ext::{NAME}", _fake, registrations)
    register_autograd(getattr(ops, NAME).default, _scale, _save, registrations)


def loss_of(head: Head, call: Call, weight: Tensor, bias: Tensor | None, features: Sequence[Tensor]) -> Tensor:
    """The op on the arguments of a call that is being compiled."""
    given = (weight, bias, *features)
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in given]
    constants, numbers = by_tensors.apart(call)
    geometry = [size for pair in head.geometry for size in pair]
    return ops.conv_loss_and_gradients(
        list(features), weight, bias, *constants, geometry, head.memory_budget, wanted, *numbers
    )[0]

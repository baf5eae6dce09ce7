# Owns: what tensors beside logits in rows, [..., classes], may be, and the form in which the ops take them.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _factors as factors
from ._arguments import Alpha
from ._options import FIRST_PARAMETER, Options


# What tensors decide of a call: the logits, the first fields of a Call, its numbers, ignore_index and divisor, and
# whether all tensors are plain (Request).
Bound = tuple[
    tuple[Tensor, ...],
    tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None],
    tuple[float, ...],
    int | None,
    int,
    bool,
]


def bind(
    options: Options, inputs: Tensor, targets: Any, weight: Tensor | None, alpha: Alpha, normalizer: Tensor | None
) -> Bound:
    spec, _, numbers, divisor, ignore_index, overwrite_inputs, batch_dims = options
    scores = class_alpha = None
    plain = arguments.is_in_memory(inputs)
    if not plain or inputs.dtype not in arguments.LOGIT_DTYPES or not inputs.dim():
        arguments.check_inputs(inputs)
    if batch_dims:
        arguments.check_batch_end(batch_dims, inputs.dim() - 1, inputs.shape)
    if isinstance(targets, Tensor):
        if spec.needs_scores:
            arguments.check_has_scores(inputs, targets)
    elif not spec.is_per_row:
        targets, scores = arguments.check_scored(inputs, targets)
        plain = plain and arguments.is_in_memory(scores)
    if plain and arguments.is_in_memory(targets) and targets.device == inputs.device:
        dense = kind_of(inputs, targets)
    else:
        dense, plain = None, False
    if dense is None:
        dense = arguments.is_dense(inputs, targets)
    if dense:
        divisor, numbers, targets, ignore_index = bind_dense(options, inputs, targets, inputs.shape[:-1])
    if alpha is not None:
        class_alpha = factors.check_class_alpha(alpha, inputs, inputs.shape[-1], spec.most_alpha)
        plain = plain and type(class_alpha) is Tensor
    if divisor == factors.BY_TENSOR or is_compiling() or not isinstance(numbers[2], float):
        divisor, numbers, normalizer = factors.divisor_of(divisor, numbers, normalizer, inputs, batch_dims)
        plain = plain and type(normalizer) is Tensor
    if weight is not None:
        weight = factors.check_row_weight(weight, inputs) if spec.is_per_row else factors.check_weight(weight, inputs)
        plain = plain and type(weight) is Tensor
    if (
        overwrite_inputs
        and torch.is_grad_enabled()
        and not (arguments.is_traced() or torch.is_inference_mode_enabled())
    ):
        arguments.check_overwrite(inputs, targets, weight, scores)
    return (
        (inputs,),
        (targets if plain else targets.contiguous(), scores, weight, class_alpha, normalizer),
        numbers,
        ignore_index,
        divisor,
        plain,
    )


bind_quietly = arguments.quiet_under_jit_trace(bind)


def kind_of(inputs: Tensor, targets: Tensor) -> bool | None:
    """Whether targets in memory are dense, or None where is_dense() has to look closer: it has the errors."""
    if targets.dtype in arguments.ID_DTYPES and targets.shape == inputs.shape[:-1]:
        return False
    return True if targets.shape == inputs.shape and not targets.is_complex() and not targets.is_quantized else None


def bind_dense(
    options: Options, inputs: Tensor, targets: Tensor, rows: Sequence[int]
) -> tuple[int, tuple[float, ...], Tensor, int | None]:
    """The kind of the divisor, the numbers, the targets as the ops read them and what is ignored among them; `rows` is
    the shape of a loss of rows."""
    divisor, numbers = _divisor_of_dense(options, inputs, targets, rows)
    if targets.dtype is inputs.dtype or targets.dtype in (torch.bool, torch.uint8):
        return divisor, numbers, targets, options.ignore_index
    return divisor, numbers, *_as_read(targets, inputs, options.ignore_index)


def _divisor_of_dense(
    options: Options, inputs: Tensor, targets: Tensor, rows: Sequence[int]
) -> tuple[int, tuple[float, ...]]:
    """The kind of the divisor, and the numbers with its value where all targets count."""
    spec, numbers = options.spec, options.numbers
    if spec.check_dense is not None:
        spec.check_dense(*numbers[FIRST_PARAMETER:])
    if options.reduction == "mean" and not arguments.ignores_some(targets, options.ignore_index):
        count = math.prod((rows if spec.is_per_row else inputs.shape)[options.batch_dims :])
        return factors.BY_VALUE, (*numbers[:2], arguments.as_float(max(count, 1)), *numbers[3:])
    if options.reduction == "sum" and options.divisor == factors.BY_POSITIVES:
        raise ValueError("normalizer: 'positives' counts class ids, got dense targets; pass a float or a 0-d tensor")
    return options.divisor, numbers


def _as_read(targets: Tensor, inputs: Tensor, ignore_index: int | None) -> tuple[Tensor, int | None]:
    """Dense targets of another dtype as the ops read them, with what is ignored among them."""
    if targets.is_floating_point():
        return targets.to(arguments.accumulation_dtype(inputs.dtype)), ignore_index
    return arguments.as_stored_integers(targets, ignore_index)

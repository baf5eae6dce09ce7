# Owns: the plain form of a checked call, in the order in which the native ops take it.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from . import _levels as of_levels
from . import _rows as of_rows
from ._arguments import Alpha, Normalizer, is_number, is_watched
from ._class_dim import Unreduced, laid
from ._factors import OF_TENSOR
from ._levels import Levels
from ._options import FIRST_PARAMETER, check_options, options_once
from ._spec import LOSSES, LossSpec


class Call(NamedTuple):
    """The checked arguments of one call in the order of the native ops, tensors first, behind the logits.

    What torch.compile traces takes slices and functions: the compiler of torch 2.10 does not know a NamedTuple's
    properties.
    """

    # contiguous; class ids, one a row, or dense of the shape of the logits, of levels of that of the only one
    targets: Tensor
    scores: Tensor | None  # [rows] in the accumulation dtype: the target of each positive id's class; None: 1
    # in the accumulation dtype, of rows [rows or 1, classes or 1], of levels [images, 1], [images, anchors], [classes]
    weight: Tensor | None
    alpha: Tensor | None  # [classes] in the accumulation dtype
    normalizer: Tensor | None  # 0-d, or of the shape of the loss, in the accumulation dtype
    loss: int  # its place in LOSSES
    numbers: tuple[float, ...]  # as in Options
    ignore_index: int | None
    divisor: int  # a kind of _factors.py
    classes: int  # of levels; 0: the logits are rows, [..., classes]
    batch_dims: int  # leading dimensions of the logits that the loss has too


TENSORS = 5  # the first fields of a Call
NUMBERS, BATCH_DIMS = map(Call._fields.index, ("numbers", "batch_dims"))


def tensors_of(call: Call) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    return call[:5]


def spec_of(call: Call) -> LossSpec:
    return LOSSES[call.loss]


def parameters_of(call: Call) -> tuple[float, ...]:
    """The loss's own numbers."""
    return call.numbers[FIRST_PARAMETER:]


def classes_of(logits: Sequence[Tensor], call: Call) -> int:
    return call.classes or logits[0].shape[-1]


def has_ids(logits: Sequence[Tensor], call: Call) -> bool:
    """Whether the targets are class ids."""
    return call.targets.dim() < logits[0].dim()


class Request(NamedTuple):
    """All that a loss function was asked for."""

    logits: tuple[Tensor, ...]  # one tensor of rows, or the levels
    call: Call
    reduction: str
    overwrite_inputs: bool
    # Nothing traces or transforms the call, and all tensors are contiguous and of no subclass. Nearly every call is so,
    # and then nothing more need be asked.
    plain: bool
    unreduced: Unreduced = None


# What every loss takes beside its own numbers, in this order: reduction, normalizer, weight, ignore_index,
# overwrite_inputs, class_dim, batch_dims.
Shared = tuple[str, Normalizer, Tensor | None, int | None, bool, int, int]


def check(
    spec: LossSpec,
    inputs: Tensor | Levels,
    targets: Any,
    alpha: Alpha,
    shared: Shared,
    *parameters: Any,
) -> Request:
    """Checks every argument before anything is computed."""
    reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims = shared
    watched = is_watched()
    number, class_alpha = (
        (alpha, None)
        if type(alpha) is float or alpha is None or not spec.has_class_alpha or is_number(alpha)
        else (None, alpha)
    )
    value, tensor = (OF_TENSOR, normalizer) if isinstance(normalizer, Tensor) else (normalizer, None)
    options_of = check_options if watched else options_once
    unreduced: Unreduced = None
    if isinstance(inputs, Levels):
        of_levels.check_words(spec, "", 0, class_dim)
    elif class_dim != -1:
        inputs, targets, weight, unreduced = laid(
            spec, inputs, targets, weight, class_dim, class_alpha is not None, reduction, batch_dims
        )
    options = options_of(spec, number, reduction, value, ignore_index, overwrite_inputs, batch_dims, *parameters)
    if isinstance(inputs, Levels):
        bind: Any = of_levels.bind_quietly if watched else of_levels.bind
        classes = inputs.classes
    else:
        bind, classes = of_rows.bind_quietly if watched else of_rows.bind, 0
    logits, tensors, numbers, ignore_index, divisor, plain = bind(options, inputs, targets, weight, class_alpha, tensor)
    call = Call._make((*tensors, spec.number, numbers, ignore_index, divisor, classes, batch_dims))
    return Request(logits, call, reduction, overwrite_inputs, plain and not watched, unreduced)

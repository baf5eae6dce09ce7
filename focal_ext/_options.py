# Owns: the plain numbers and words of a call: their rules and the immutable form that is made of them once.
# Must not know: tensors of a call, formulas, autograd, the native library, any one loss.
from __future__ import annotations

import functools
from typing import Any, NamedTuple

from . import _arguments as arguments
from . import _factors as factors
from ._spec import LossSpec


class Options(NamedTuple):
    """What a call has beside tensors, checked."""

    spec: LossSpec
    reduction: str
    numbers: tuple[float, ...]  # the factors of a target of 1 and of 0, the divisor's value, then the loss's own
    divisor: int  # a kind of _factors.py; of dense targets the mean's is that of class ids as yet
    ignore_index: int | None
    overwrite_inputs: bool
    batch_dims: int


FIRST_PARAMETER = 3  # of numbers


def check_options(
    spec: LossSpec,
    alpha: Any,
    reduction: Any,
    normalizer: Any,
    ignore_index: Any,
    overwrite_inputs: Any,
    batch_dims: Any,
    *parameters: Any,
) -> Options:
    """Raises for the first that breaks its rule. An alpha by class is None here, a normalizer by tensor
    factors.OF_TENSOR."""
    own = spec.parameters(*parameters)
    of_one, of_zero = (1.0, 1.0) if spec.alpha is None else spec.alpha(alpha)
    divisor, value = factors.check_normalizer(normalizer, reduction, spec.is_per_row)
    ignore_index = arguments.check_ignore_index(ignore_index)
    if not isinstance(overwrite_inputs, bool):
        raise TypeError(f"overwrite_inputs: must be a bool, got {type(overwrite_inputs).__name__}")
    arguments.check_batch_dims(batch_dims, reduction)
    return Options(spec, reduction, (of_one, of_zero, value, *own), divisor, ignore_index, overwrite_inputs, batch_dims)


# A training step gives the numbers of the step before. Equal numbers of two types are two entries.
_looked_up = functools.lru_cache(1024, typed=True)(check_options)
_PLAIN_TYPES = {int, float, bool, str, type(None), type(factors.OF_TENSOR)}


def options_once(spec: LossSpec, *given: Any) -> Options:
    """check_options() of the same arguments, looked up where it was asked before. Symbols of a graph have no hash."""
    return _looked_up(spec, *given) if _PLAIN_TYPES.issuperset(map(type, given)) else check_options(spec, *given)


def check_again(spec: LossSpec, numbers: tuple[float, ...]) -> None:
    """The rules of numbers whose values are seen for the first time when the ops run."""
    spec.parameters(*numbers[FIRST_PARAMETER:])
    if spec.alpha is not None:
        broken = [factor for factor in numbers[:2] if not 0 <= factor <= spec.most_alpha]
        if broken and not (spec.is_per_row and numbers[0] not in broken):
            rule = "in [0, 1]" if spec.most_alpha == 1 else "finite and >= 0"
            raise ValueError(
                f"alpha: must be {rule}, got {numbers[0] if not 0 <= numbers[0] <= spec.most_alpha else numbers[1]}"
            )

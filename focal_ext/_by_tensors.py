# Owns: the ops for numbers that change from call to call of a compiled graph, which come as tensors: an op's own floats
# are constants of it.
# Must not know: which number is which, autograd, kernels.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._call import NUMBERS, Call, spec_of
from ._native import ops
from ._options import check_again
from ._symbols import as_tensor, is_constant
from ._torch_private import register_fake, schema_of

SUFFIX = "_by_tensors"
FIELDS = len(Call._fields)


class Numbers(NamedTuple):
    tensors: list[Tensor]  # 0-d
    places: list[int]  # among the numbers of a Call


NONE = Numbers([], [])
_defined = {"loss"} if hasattr(ops, f"loss{SUFFIX}") else set()  # the package may be imported anew, the ops stay


def define(name: str, registrations: torch.library.Library) -> bool:
    """Defines the op `name` again, with tensors for its numbers behind its arguments, if torch tells the schema.
    Returns whether it did.

    The new op reads the tensors' values on the host. They lie on the CPU, unless the graph itself has read a number
    from a device, for which it waits anyway.
    """
    op, schema = getattr(ops, name), schema_of(getattr(ops, name))
    if schema is None:
        return False
    arguments, results = schema.rsplit(" -> ", 1)
    arguments = ", ".join(argument.split("=")[0] for argument in arguments[arguments.index("(") + 1 : -1].split(", "))

    def run(logits: Any, *given: Any) -> Any:
        call = filled(Call(*given[:FIELDS]), *given[-2:])
        return op(logits, *call, *given[FIELDS:-2])

    registrations.define(f"{name}{SUFFIX}({arguments}, Tensor[] by_tensors, int[] places) -> {results}")
    registrations.impl(f"{name}{SUFFIX}", run, "CompositeExplicitAutograd")
    register_fake(f"focal_ext::{name}{SUFFIX}", lambda *given: op(*given[:-2]), registrations)
    _defined.add(name)
    return True


def filled(call: Call, tensors: Sequence[Tensor], places: Sequence[int]) -> Call:
    """The call with the numbers in their places, which are checked now that their values are known."""
    numbers = list(call.numbers)
    for place, tensor in zip(places, tensors):
        numbers[place] = tensor.item()  # on the CPU
    check_again(spec_of(call), tuple(numbers))
    return call._replace(numbers=tuple(numbers))


def apart(call: Call) -> tuple[Any, Numbers]:
    """The call with constants alone, and the numbers that are none as tensors."""
    given = call.numbers
    places = [place for place, number in enumerate(given) if not is_constant(number)]
    if not places or not _defined:
        return call, NONE
    tensors = [as_tensor(given[place], torch.ones(()), torch.float64) for place in places]
    # of which those are never read
    constants = tuple(0.5 if place in places else number for place, number in enumerate(given))
    return (*call[:NUMBERS], constants, *call[NUMBERS + 1 :]), Numbers(tensors, places)


def call(name: str, numbers: Numbers, *arguments: Any) -> Any:
    return getattr(ops, name + SUFFIX)(*arguments, *numbers) if numbers.places else getattr(ops, name)(*arguments)


def numbers_of(arguments: tuple[Any, ...]) -> Numbers:
    """The numbers that end the arguments of an op that takes them by tensors."""
    return Numbers(*arguments[-2:]) if isinstance(arguments[-2], (list, tuple)) else NONE


def numbers_saved(ctx: Any) -> tuple[Numbers, list[Tensor]]:
    """The numbers that lead what was saved, and the rest."""
    first = len(ctx.places)
    return Numbers(list(ctx.saved_tensors[:first]), ctx.places), list(ctx.saved_tensors[first:])

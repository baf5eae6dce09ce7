# Owns: the ops for numbers that change from call to call of a compiled graph, which come as tensors: an op's own floats are constants of it.
# Must not know: which number is which, autograd, kernels.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._call import Call, PyramidCall, check_numbers_of
from ._native import ops
from ._symbols import as_tensor, is_constant
from ._torch_private import register_fake, schema_of

SUFFIX = "_by_tensors"


class Numbers(NamedTuple):
    tensors: list[Tensor]  # 0-d
    places: list[int]  # of the numbers among the op's arguments


NONE = Numbers([], [])
FLOATS, PYRAMID_FLOATS = (tuple(name for name, kind in fields.__annotations__.items() if "float" in str(kind)) for fields in (Call, PyramidCall))
_defined = {"loss"} if hasattr(ops, f"loss{SUFFIX}") else set()  # the package may be imported anew, the ops stay


def define(name: str, registrations: torch.library.Library) -> bool:
    """Defines the op `name` again with numbers by tensors behind its arguments, if torch tells the schema; returns whether it did.

    It reads their values on the host. They are on the CPU, unless the graph itself read a number from a device, and would have waited then.
    """
    op, schema = getattr(ops, name), schema_of(getattr(ops, name))
    if schema is None:
        return False
    arguments, results = schema.rsplit(" -> ", 1)
    arguments = ", ".join(argument.split("=")[0] for argument in arguments[arguments.index("(") + 1 : -1].split(", "))

    def run(*given: Any) -> Any:
        plain = filled(given[:-2], *given[-2:])
        fields = PyramidCall if name.startswith("pyramid") else Call
        check_numbers_of(fields(*plain[1 : 1 + len(fields._fields)]))
        return op(*plain)

    registrations.define(f"{name}{SUFFIX}({arguments}, Tensor[] numbers, int[] places) -> {results}")
    registrations.impl(f"{name}{SUFFIX}", run, "CompositeExplicitAutograd")
    register_fake(f"focal_ext::{name}{SUFFIX}", lambda *given: op(*given[:-2]), registrations)
    _defined.add(name)
    return True


def filled(arguments: Sequence[Any], numbers: Sequence[Tensor], places: Sequence[int]) -> list[Any]:
    """The arguments with the numbers in their places."""
    plain = list(arguments)
    for place, number in zip(places, numbers):
        plain[place] = number.item()  # on the CPU
    return plain


def apart(call: Call | PyramidCall, first: int = 1) -> tuple[Any, Numbers]:
    """The call with constants alone, and the numbers that are none as tensors; `first` is the place of the call's first field."""
    floats = PYRAMID_FLOATS if isinstance(call, PyramidCall) else FLOATS
    names = [name for name in floats if not is_constant(getattr(call, name))]
    if not names or not _defined:
        return call, NONE
    tensors = [as_tensor(getattr(call, name), torch.ones(()), torch.float64) for name in names]
    constants: dict[str, Any] = dict.fromkeys(names, 0.5)  # never read
    return call._replace(**constants), Numbers(tensors, [first + call._fields.index(name) for name in names])


def call(name: str, numbers: Numbers, *arguments: Any) -> Any:
    return getattr(ops, name + SUFFIX)(*arguments, *numbers) if numbers.places else getattr(ops, name)(*arguments)


def numbers_of(arguments: tuple[Any, ...]) -> Numbers:
    """The numbers that end the arguments of an op that takes them by tensors."""
    return Numbers(*arguments[-2:]) if isinstance(arguments[-1], (list, tuple)) else NONE


def numbers_saved(ctx: Any) -> tuple[Numbers, list[Tensor]]:
    """The numbers that lead what was saved, and the rest."""
    first = len(ctx.places)
    return Numbers(list(ctx.saved_tensors[:first]), ctx.places), list(ctx.saved_tensors[first:])

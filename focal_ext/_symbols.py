# Owns: numbers whose value a graph may not know (torch.SymFloat, SymInt): which they are, comparing them, making
# tensors of them.
# Must not know: arguments, losses.
#
# torch.compile makes a symbol of a float that changed, and one without a value of what the graph reads from a tensor
# (capture_scalar_outputs). A comparison of the first kind guards the graph, of the second it is an error. An op's own
# float makes the first a constant, so that every value is compiled anew, and refuses the second.
from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._torch_private import guard_or, has_static_value, specialized

SYMBOLS = (torch.SymFloat, torch.SymInt)


def is_constant(number: float) -> bool:
    """Whether the number is the same in every call of the graph that is being made; outside of graphs it is."""
    return has_static_value(number) if is_compiling() or isinstance(number, SYMBOLS) else True


def holds(*conditions: bool, unknown: bool = True) -> bool:
    """Whether comparisons hold, as a bool; `unknown` in place of those that a graph cannot know."""
    if is_compiling() or torch.SymBool in map(type, conditions):
        return all(guard_or(condition, unknown) for condition in conditions)
    return all(conditions)


def quoted(number: object) -> object:
    """The number for the text of an error; texts of symbols cannot be traced."""
    return specialized(number) if is_compiling() and isinstance(number, (int, float)) else number


def as_tensor(number: float, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A 0-d tensor on the device of `like`, made by a product: of all ops that make a tensor of a symbol, torch.compile
    takes this one."""
    return torch.ones((), dtype=dtype, device=like.device) * number


def unless_constant(number: float | Tensor, like: Tensor) -> float | Tensor:
    """The number as an operand for ops that would make a symbol a constant: powers, torch.where."""
    return number if isinstance(number, Tensor) or is_constant(number) else as_tensor(number, like, like.dtype)


def at_most(number: float, limit: float, like: Tensor) -> float | Tensor:
    """min(number, limit) as an operand."""
    return min(number, limit) if is_constant(number) else as_tensor(number, like, like.dtype).clamp(max=limit)

# Owns: what a loss declares of itself, once, and the list of those that did.
# Must not know: any one loss, tensors of a call, kernels.
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, eq=False)
class LossSpec:
    """One loss, as the checks of arguments, the reference, the modules and the twins over pyramids need to know it."""

    number: int
    """Its place in the list of csrc/losses/list.h."""
    parameters: Callable[..., tuple[float, ...]]
    """Checks the loss's own numbers and returns them in the order of csrc/losses/list.h."""
    formula: Callable[..., Tensor]
    """(x, t, *parameters) -> the loss of each logit without alpha; per row (x, t, alpha of each class times t,
    *parameters) -> [rows, 1]."""
    alpha: Callable[[Any], tuple[float, float]] | None = None
    """Checks alpha, if it is a number, and returns the factors of a target of 1 and of 0. None: no alpha."""
    most_alpha: float = 1.0
    needs_scores: bool = False
    """Whether class ids come in pairs with scores alone; of other losses of one logit they may."""
    splits: bool = False
    """Whether positives have a formula and a factor of their own: the classes that class ids name, whatever their
    scores, and dense targets above 0. The formula is then (x, t, where the positives are, *parameters)."""
    is_per_row: bool = False
    """Whether the loss is one number a row and class ids know no background; else it is one a logit."""
    check_dense: Callable[..., None] | None = None
    """Raises for the loss's own numbers that go with class ids only. None: all go with dense targets."""
    has_cuda_levels: bool = False
    """Whether the CUDA kernels read the levels of a pyramid; else they are copied into rows there, as is float64,
    and for a softmax loss channels_last levels and dense targets."""
    has_class_alpha: bool = False
    """Whether alpha may be one number a class."""


LOSSES: list[LossSpec] = []
"""By number."""
FUNCTIONS: list[Callable[..., Tensor]] = []
"""The function of each."""


def declare(spec: LossSpec, function: Callable[..., Tensor]) -> None:
    """Puts a loss on the list, in its place; a package that is imported anew finds a list of its own."""
    LOSSES.extend([spec] * (spec.number + 1 - len(LOSSES)))
    FUNCTIONS.extend([function] * (spec.number + 1 - len(FUNCTIONS)))
    LOSSES[spec.number], FUNCTIONS[spec.number] = spec, function

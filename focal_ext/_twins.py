# Owns: what is made of the function of a loss: the same over the levels of a pyramid, and the same by the reference.
# Must not know: any one loss, formulas, kernels, what an argument may be.
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._dense_levels import are_dense, loss_over
from ._levels import Levels, in_order, in_the_order_of
from ._torch_private import outside_old_graphs


def over_rows(function: Callable[..., Tensor], finish: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function itself, whose checked request goes to `finish`."""
    request = function.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(function)
    @outside_old_graphs
    def loss(*args: Any, **kwargs: Any) -> Tensor:
        return finish(*request(*args, **kwargs))

    return loss


def _signature(function: Callable[..., Tensor]) -> inspect.Signature:
    """That of the function over rows with levels and num_classes, and a sum by default: a pyramid has no map of
    losses."""
    _, targets, *rest = inspect.signature(function).parameters.values()
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    first = (
        inspect.Parameter("levels", kind, annotation="Sequence[Tensor]"),
        targets,
        inspect.Parameter("num_classes", kind, annotation="int"),
    )
    rest = [p.replace(default="sum") if p.name == "reduction" else p for p in rest]
    return inspect.Signature([*first, *rest], return_annotation="Tensor")


def over_levels(function: Callable[..., Tensor], finish: Callable[..., Tensor], module: str) -> Callable[..., Tensor]:
    """The function over the levels of a pyramid, whose checked request goes to `finish`."""
    request, signature = function.__wrapped__, _signature(function)  # type: ignore[attr-defined]
    parameters = list(signature.parameters.values())[3:]
    names, defaults = [p.name for p in parameters], {p.name: p.default for p in parameters}
    before_reduction, positional = names.index("reduction"), sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)

    def loss_of_rows(inputs: Tensor, targets: Tensor, **options: Any) -> Tensor:
        return finish(*request(inputs, targets, **options))

    @functools.wraps(function)
    @outside_old_graphs
    def loss(levels: Sequence[Tensor], targets: Any, num_classes: int, *args: Any, **kwargs: Any) -> Tensor:
        maps, targets = Levels(in_order(levels), num_classes), in_the_order_of(levels, targets)
        if are_dense(targets) and len(args) <= positional and not any(name in kwargs for name in names[: len(args)]):
            options = {**defaults, **dict(zip(names, args)), **kwargs}
            return loss_over(function.spec, loss_of_rows, maps, targets, options)  # type: ignore[attr-defined]
        if len(args) <= before_reduction:
            kwargs.setdefault("reduction", "sum")
        return finish(*request(maps, targets, *args, **kwargs))

    loss.__doc__ = f":func:`focal_ext.{function.__name__}` over the levels of a pyramid; see :mod:`focal_ext.pyramid`."
    loss.__signature__, loss.__module__ = signature, module  # type: ignore[attr-defined]
    return loss

# Owns: a checked request as a public function: the dispatch, and the error for a target that is out of range.
# Must not know: any one loss, argument rules, kernels.
from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ParamSpec

from torch import Tensor

from . import _arguments as arguments
from . import _autograd, _debug, _native, _reference
from ._class_dim import Unreduced, as_asked
from ._call import Call, Request, classes_of, tensors_of
from ._spec import LossSpec, declare
from ._torch_private import outside_old_graphs

P = ParamSpec("P")


def fused(spec: LossSpec) -> Callable[[Callable[P, Request]], Callable[P, Tensor]]:
    """Makes the function of a loss of one that checks its arguments, and puts the loss on the list."""

    def decorate(request: Callable[P, Request]) -> Callable[P, Tensor]:
        @functools.wraps(request)
        @outside_old_graphs
        def loss(*args: P.args, **kwargs: P.kwargs) -> Tensor:
            return run(*request(*args, **kwargs))

        loss.__annotations__["return"] = "Tensor"
        loss.spec = spec  # type: ignore[attr-defined]
        declare(spec, loss)
        return loss

    return decorate


def run(
    logits: tuple[Tensor, ...],
    call: Call,
    reduction: str,
    overwrite_inputs: bool,
    plain: bool = False,
    unreduced: Unreduced = None,
) -> Tensor:
    """The loss by the fastest implementation that is right for the request."""
    if unreduced is not None and reduction == "none":
        return as_asked(run(logits, call, reduction, overwrite_inputs, plain), unreduced)
    if _debug.enabled:
        call = _debug.with_checked_targets(logits, call)
    first, targets = logits[0], call.targets
    readable = first.is_cpu if plain else arguments.values_are_readable(first, targets)
    if not readable or not (targets.dim() < first.dim() or arguments.are_integers(targets)):
        return _autograd.dispatch(logits, call, reduction, overwrite_inputs, plain)
    # A bad target makes a reduced loss NaN: looking for it only then saves every other call a pass over the targets.
    only_then = (
        reduction != "none"
        and _native.available
        and classes_of(logits, call) != 0
        and (plain or arguments.are_plain(tensors_of(call)))
    )
    if not only_then:
        _check_targets(logits, call)
    loss = _autograd.dispatch(logits, call, reduction, overwrite_inputs, plain)
    if only_then and arguments.is_nan(loss):
        _check_targets(logits, call)
    return loss


def check_targets_where_nan(loss: Tensor, logits: Sequence[Tensor], call: Call) -> None:
    """Names the first bad target where a value can be read for free; it makes the loss NaN."""
    if arguments.values_are_readable(loss, call.targets) and arguments.is_nan(loss):
        _check_targets(logits, call)


def _check_targets(logits: Sequence[Tensor], call: Call) -> None:
    if not arguments.is_fx_traced():
        _reference.check_targets(
            logits, call, _native.ops.first_bad_id if _native.available else _reference.first_bad_target
        )

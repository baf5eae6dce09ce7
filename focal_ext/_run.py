# Owns: a checked request as a public function: the dispatch, and the error for a target that is out of range.
# Must not know: which losses there are, argument rules, kernels.
from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _autograd, _native, _reference
from ._call import Call, Request, is_per_row
from ._torch_private import outside_old_graphs

P = ParamSpec("P")


def fused(request: Callable[P, Request]) -> Callable[P, Tensor]:
    """The loss function whose arguments `request` checks, computed by the fastest implementation that is right for them."""

    @functools.wraps(request)
    @outside_old_graphs
    def loss(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        inputs, call, reduction, overwrite_inputs, ordinary = request(*args, **kwargs)
        targets = call.targets
        is_unchecked = targets.dim() == inputs.dim() and (targets.is_floating_point() or targets.dtype is torch.bool)
        if is_unchecked or not (inputs.is_cpu if ordinary else arguments.values_are_readable(inputs, targets)):
            return _autograd.dispatch(inputs, call, reduction, overwrite_inputs, ordinary)
        # A bad target makes a reduced loss NaN: looking for it only then saves every other call a pass over the targets.
        only_then = reduction != "none" and _native.available and inputs.shape[-1] != 0 and (ordinary or arguments.are_plain(call.tensors))
        if not only_then:
            _check_targets(inputs, call)
        loss = _autograd.dispatch(inputs, call, reduction, overwrite_inputs, ordinary)
        if only_then and arguments.is_nan(loss):
            _check_targets(inputs, call)
        return loss

    loss.__annotations__["return"] = "Tensor"
    return loss


def _check_targets(inputs: Tensor, call: Call) -> None:
    if arguments.is_fx_traced():
        return
    targets, ignore_index = call.targets, call.ignore_index
    dense = targets.dim() == inputs.dim()
    classes, background = (2, False) if dense else (inputs.shape[-1], not is_per_row(call))  # dense integers are ids of 0 and 1
    native = _native.available
    first_bad = int(_native.ops.first_bad_id(targets, classes, ignore_index, background)) if native else _reference.first_bad(targets, classes, ignore_index, background)
    if dense:
        arguments.check_dense(first_bad, targets, ignore_index)
    else:
        arguments.check_ids(first_bad, targets, classes, ignore_index, background)

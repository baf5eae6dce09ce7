# Owns: the public functions over the textbook formulas.
# Must not know: formulas, the native library.
"""The same functions as :mod:`focal_ext`, in plain PyTorch and differentiable in every tensor, to any order.

Same arguments, same errors, same results to rounding. ``overwrite_inputs`` is checked and has no other effect.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec

from torch import Tensor

from . import _reference, losses
from ._torch_private import outside_old_graphs

P = ParamSpec("P")


def _plain(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    request = function.__wrapped__  # type: ignore[attr-defined]

    @functools.wraps(function)
    @outside_old_graphs
    def loss(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        inputs, call, reduction, *_ = request(*args, **kwargs)
        return _reference.checked(inputs, call, reduction)

    return loss


sigmoid_focal_loss = _plain(losses.sigmoid_focal_loss)
quality_focal_loss = _plain(losses.quality_focal_loss)
varifocal_loss = _plain(losses.varifocal_loss)
asymmetric_loss = _plain(losses.asymmetric_loss)
softmax_focal_loss = _plain(losses.softmax_focal_loss)

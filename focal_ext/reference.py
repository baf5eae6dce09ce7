# Owns: the public functions over the textbook formulas.
# Must not know: any one loss, the native library.
"""The same functions as :mod:`focal_ext`, in plain PyTorch and differentiable in every tensor, to any order.

Same arguments, same errors, same results to rounding; ``reference.pyramid`` has those of :mod:`focal_ext.pyramid`.
``overwrite_inputs`` is checked and has no other effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING

from torch import Tensor

from . import _debug, _reference, losses  # noqa: F401  the rooms declare the functions
from ._call import Call
from ._class_dim import Unreduced, as_asked
from ._spec import FUNCTIONS
from ._twins import over_levels, over_rows


def _finish(
    logits: Sequence[Tensor], call: Call, reduction: str, overwrite_inputs: bool, plain: bool, unreduced: Unreduced
) -> Tensor:
    if _debug.enabled:
        call = _debug.with_checked_targets(logits, call)
    loss = _reference.checked(logits, call, reduction)
    return as_asked(loss, unreduced) if reduction == "none" else loss


__all__ = [function.__name__ for function in FUNCTIONS]
globals().update((function.__name__, over_rows(function, _finish)) for function in FUNCTIONS)
pyramid = SimpleNamespace(
    **{function.__name__: over_levels(function, _finish, f"{__name__}.pyramid") for function in FUNCTIONS}
)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Callable[..., Tensor]: ...

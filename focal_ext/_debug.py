# Owns: the switch by which bad targets raise where nothing looks at their values: on a device and in compiled graphs.
# Must not know: any one loss, which values are bad, autograd, kernels.
from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _reference as reference
from ._call import Call
from ._native import ops

enabled = False


class debug:  # a function by name, and a context, as torch.autograd.set_detect_anomaly
    """Bad targets raise everywhere: on CUDA and in compiled graphs too, where they make loss and gradient NaN
    otherwise.

    ``focal_ext.debug()`` switches it on for the process, ``focal_ext.debug(False)`` off, and ``with
    focal_ext.debug():`` on for a while. Each call then reads its targets once more and, on CUDA, waits for the device;
    CUDA graphs cannot capture that. A compiled function is compiled anew when the switch changes. Under torch.func,
    torch.jit.trace and torch.export nothing is looked at.

    Args:
        mode: True for on, False for off.

    Raises:
        ValueError: from then on, a class id out of range, or a dense integer other than 0, 1 and ignore_index: the
            first of them, by name.

    Example:
        >>> logits, labels = torch.randn(2, 80), torch.tensor([3, -1])
        >>> with focal_ext.debug():
        ...     loss = sigmoid_focal_loss(logits, labels, reduction="sum")
    """

    def __init__(self, mode: bool = True) -> None:
        global enabled
        if not isinstance(mode, bool):
            raise TypeError(f"mode: must be a bool, got {type(mode).__name__}")
        if mode:
            _define()
        self._before, enabled = enabled, mode

    def __enter__(self) -> debug:
        return self

    def __exit__(self, *_: object) -> None:
        global enabled  # noqa: PLW0603  the switch is the process's
        enabled = self._before


@functools.cache
def _define() -> None:
    """An op, which a graph keeps as it is. Made when somebody debugs: import is not to pay for it."""

    def checked_targets(
        targets: Tensor, classes: int, ignore_index: int | None, background: bool, dense: bool
    ) -> Tensor:
        reference.check_values(targets, classes, ignore_index, background, dense)
        return targets.clone()

    schema = "(Tensor targets, SymInt classes, int? ignore_index, bool background, bool dense) -> Tensor"
    op = torch.library.custom_op("focal_ext::checked_targets", checked_targets, mutates_args=(), schema=schema)
    op.register_fake(lambda targets, *_: torch.empty_like(targets))


def with_checked_targets(logits: Sequence[Tensor], call: Call) -> Call:
    """Raises for the first bad target, now or when the graph runs; where no value can be had the call is as it was."""
    rule = reference.rule_of_targets(logits, call)
    if rule is None:
        return call
    if is_compiling():
        return (
            call if torch.onnx.is_in_onnx_export() else call._replace(targets=ops.checked_targets(call.targets, *rule))
        )
    if not (arguments.is_traced() or arguments.is_fx_traced()) and arguments.is_plain(call.targets):
        reference.check_values(call.targets, *rule)
    return call

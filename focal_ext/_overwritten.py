# Owns: which logits hold their gradient since a call with overwrite_inputs, so that no later call takes it for logits.
# Must not know: formulas, kernels, what autograd keeps.
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._torch_private import owner_of

# an attribute of the tensor that owns the memory: its version since, and the views that were overwritten
MARK = "_focal_ext_gradient"
happened = False  # as long as nobody overwrites, nobody is asked


def _place(t: Tensor) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
    return t.data_ptr(), tuple(t.shape), t.stride()


def remember(logits: Sequence[Tensor]) -> None:
    """After they were written, and their version counters raised by one."""
    global happened  # noqa: PLW0603  of the process
    happened = True
    for t in logits:
        version, places = getattr(owner_of(t), MARK, (None, ()))
        setattr(owner_of(t), MARK, (t._version, (*(places if version == t._version - 1 else ()), _place(t))))


def check(logits: Sequence[Tensor]) -> None:
    for t in logits:
        mark = None if t.is_inference() else getattr(owner_of(t), MARK, None)
        if mark is not None and mark[0] == t._version and _place(t) in mark[1]:
            raise RuntimeError(
                "inputs: hold their gradient since an earlier call with overwrite_inputs=True, no logits; let that "
                "call be the last that reads them,"
                " or give it overwrite_inputs=False"
            )

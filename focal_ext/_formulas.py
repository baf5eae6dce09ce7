# Owns: what the autograd formulas of all ops share.
# Must not know: any op.
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def refuse_create_graph() -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(
            "focal_ext: a compiled or exported loss is once differentiable; for create_graph=True call it outside the "
            "compiled"
            " function, or use focal_ext.reference in it"
        )


def no_gradients(arguments: tuple[Any, ...]) -> list[Any]:
    """What backward returns for arguments without a gradient: None, for a list of nothing but tensors a list; torch
    asks for it."""
    lists = (isinstance(a, (list, tuple)) and all(isinstance(t, Tensor) for t in a) for a in arguments)
    return [[None] * len(a) if is_list else None for a, is_list in zip(arguments, lists)]


def product(gradient: Tensor, factor: Tensor) -> Tensor:
    """A gradient times grad_output, which is a number, or one for each index of the batch."""
    if not factor.dim():
        return gradient * factor
    return (gradient * factor.reshape(*factor.shape, *[1] * (gradient.dim() - factor.dim()))).to(gradient.dtype)

# Owns: what may multiply and divide a loss: alpha, weight, reduction and normalizer; every error about them, and the
# form the ops take them in.
# Must not know: formulas, autograd, the native library, which loss takes which argument.
from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ._arguments import (
    accumulation_dtype,
    as_float,
    check_layout,
    in_dtype,
    is_in_memory,
    is_number,
    is_plain,
    is_traced,
    values_are_readable,
)
from ._symbols import as_tensor, holds, is_constant, quoted

# What the reduced loss is divided by; the numbers are those of csrc/problem.h.
BY_VALUE, BY_TENSOR, BY_KEPT, BY_POSITIVES = range(4)


class _OfTensor:
    """A normalizer whose value a tensor holds, among numbers and words."""


OF_TENSOR = _OfTensor()


_kept: dict[tuple[tuple[float, ...], torch.dtype, torch.device], Tensor] = {}
_captured: dict[int, Tensor] = {}  # by address, which is all that a CUDA graph knows of them


def tensor_of(values: tuple[float, ...], dtype: torch.dtype, inputs: Tensor) -> Tensor:
    """Copied to the device of inputs once: a copy at each call would wait for the device, and no CUDA graph could
    capture it."""
    if not all(map(is_constant, values)):
        return torch.stack([as_tensor(value, inputs, dtype) for value in values])
    if is_traced() or not is_plain(inputs):
        return torch.tensor(values, dtype=dtype, device=inputs.device)
    key = values, dtype, inputs.device
    tensor = _kept.get(key)
    if tensor is None:
        with torch.inference_mode(False):  # what inference mode makes cannot be kept for a later backward
            tensor = torch.tensor(values, dtype=dtype, device=inputs.device)
        if is_plain(tensor):
            if len(_kept) >= 64:
                _kept.clear()
            _kept[key] = tensor
    if tensor.is_cuda and torch.cuda.is_current_stream_capturing():
        _captured[tensor.data_ptr()] = tensor
    return tensor


def check_alpha(alpha: Any, most: float = 1.0) -> tuple[float, float]:
    """The factors of a target of 1 and of 0 for an alpha that is one number, or off."""
    if alpha is None or (is_number(alpha) and holds(alpha == -1, unknown=False)):
        return 1.0, 1.0
    if not is_number(alpha):
        raise TypeError(
            f"alpha: must be None, a float, or a tensor or sequence of one float a class, got {type(alpha).__name__}"
        )
    factor = as_float(alpha)
    if not holds(factor >= 0, factor <= most, factor < math.inf):
        raise ValueError(f"alpha: must be {_rule_of_alpha(most)}, or None or -1 to switch it off, got {quoted(alpha)}")
    return factor + 0.0, 1.0 - factor  # -0.0 is 0.0, to which it is equal


def _rule_of_alpha(most: float) -> str:
    return "in [0, 1]" if most == 1 else "finite and >= 0"


def check_class_alpha(alpha: Any, like: Tensor, classes: int, most: float) -> Tensor:
    """One alpha a class, as the ops take it."""
    rule, dtype = _rule_of_alpha(most), accumulation_dtype(like.dtype)
    if not isinstance(alpha, Tensor):
        alpha = alpha.tolist() if hasattr(alpha, "tolist") else alpha
        if isinstance(alpha, (str, bytes, bool)) or not isinstance(alpha, Sequence) or not all(map(is_number, alpha)):
            raise TypeError(
                f"alpha: must be None, a float, or a tensor or sequence of {classes} floats, got {type(alpha).__name__}"
            )
        values = tuple(as_float(a) for a in alpha)
        if not all(holds(a >= 0, a <= most, a < math.inf) for a in values):
            raise ValueError(f"alpha: every value must be {rule}, got {[quoted(a) for a in values]}")
        alpha = tensor_of(values, dtype, like)
    check_layout("alpha", alpha)
    if alpha.is_complex() or alpha.is_quantized or alpha.dtype is torch.bool:
        raise TypeError(f"alpha: must be real numbers, got {alpha.dtype}")
    if alpha.shape != (classes,):
        raise ValueError(
            f"alpha: a tensor or sequence must hold one value per class, shape ({classes},), got {tuple(alpha.shape)}"
        )
    if alpha.device != like.device:
        raise ValueError(f"alpha: must be on the device of inputs, {like.device}, got {alpha.device}")
    if values_are_readable(alpha) and not bool(((alpha >= 0) & (alpha <= most) & (alpha < math.inf)).all()):
        raise ValueError(f"alpha: every value must be {rule}, got {alpha.tolist()}")
    return in_dtype(alpha, dtype).contiguous()


def check_weight(weight: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Brings a weight that broadcasts to inputs to [rows or 1, classes or 1], copying only where its layout is
    neither."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: must be a torch.Tensor or None, got {type(weight).__name__}")
    check_layout("weight", weight)
    if weight.is_complex() or weight.is_quantized:
        raise TypeError(f"weight: must be real numbers, got {weight.dtype}")
    if weight.device != inputs.device:
        raise ValueError(f"weight: must be on the device of inputs, {inputs.device}, got {weight.device}")
    shape = inputs.shape
    if weight.dim() > len(shape) or any(w not in (1, s) for w, s in zip(reversed(weight.shape), reversed(shape))):
        column = "weight[:, None]" if len(shape) == 2 else "weight[..., None]"
        hint = f"; one value per row must be a column, use {column}" if weight.shape == shape[:-1] else ""
        raise ValueError(f"weight: must broadcast to inputs of shape {tuple(shape)}, got {tuple(weight.shape)}{hint}")
    weight = in_dtype(weight, accumulation_dtype(inputs.dtype))
    if weight.dim() == 2 == len(shape) and weight.is_contiguous():
        return weight
    last = weight.shape[-1] if weight.dim() else 1
    if weight.numel() == last:
        return weight.reshape(1, last).contiguous()
    return weight.expand(*shape[:-1], last).reshape(math.prod(shape[:-1]), last).contiguous()


def check_row_weight(weight: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Brings a weight that broadcasts to inputs.shape[:-1] to [rows or 1, 1]."""
    if isinstance(weight, Tensor):
        rows = inputs.shape[:-1]
        if weight.dim() > len(rows) or any(w not in (1, s) for w, s in zip(reversed(weight.shape), reversed(rows))):
            hint = (
                "; a column is weight.squeeze(-1)"
                if weight.shape == (*rows, 1)
                else "; a factor for each class is alpha"
                if weight.shape == inputs.shape[-1:]
                else ""
            )
            raise ValueError(
                f"weight: must broadcast to the rows of inputs, {tuple(rows)}, got {tuple(weight.shape)}{hint}"
            )
        check_layout("weight", weight)
        weight = weight.unsqueeze(-1)
    return check_weight(weight, inputs)


def check_normalizer(normalizer: Any, reduction: Any, per_row: bool) -> tuple[int, float]:
    """The kind of the divisor and its value; the mean is that of all losses that are not ignored, one a row or one a
    logit."""
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: must be 'none', 'mean' or 'sum', got {reduction!r}")
    if normalizer is None:
        return (BY_VALUE if reduction != "mean" else BY_POSITIVES if per_row else BY_KEPT), 1.0
    if reduction != "sum":
        raise ValueError(f"normalizer: goes with reduction='sum', got reduction={reduction!r}")
    if normalizer is OF_TENSOR:
        return BY_TENSOR, 1.0
    if isinstance(normalizer, str):
        if normalizer != "positives":
            raise ValueError(f"normalizer: must be a float, a 0-d tensor or 'positives', got {normalizer!r}")
        return BY_POSITIVES, 1.0
    if not is_number(normalizer):
        raise TypeError(f"normalizer: must be a float, a 0-d tensor or 'positives', got {type(normalizer).__name__}")
    divisor = as_float(normalizer)
    if not holds(divisor > 0, divisor < math.inf):
        raise ValueError(
            f"normalizer: must be finite and > 0, got {quoted(normalizer)}; clamp a count of positives with max(n, 1)"
        )
    return BY_VALUE, divisor


def divisor_of(
    divisor: int, numbers: tuple[float, ...], normalizer: Tensor | None, like: Tensor, batch_dims: int
) -> tuple[int, tuple[float, ...], Tensor | None]:
    """The kind of the divisor, the numbers with its value, and its tensor."""
    if divisor == BY_TENSOR:
        return divisor, numbers, _check_normalizer_tensor(normalizer, like, batch_dims)
    if divisor == BY_VALUE and not is_constant(numbers[2]):
        # What changes from call to call of a graph is given by tensor. No rule could be asked of it: one that is broken
        # becomes NaN.
        tensor = as_tensor(numbers[2], like, accumulation_dtype(like.dtype))
        return BY_TENSOR, (*numbers[:2], 1.0, *numbers[3:]), tensor.where((tensor > 0) & (tensor < math.inf), torch.nan)
    return divisor, numbers, None


def _check_normalizer_tensor(normalizer: Tensor | None, like: Tensor, batch_dims: int) -> Tensor:
    assert normalizer is not None
    dtype = accumulation_dtype(like.dtype)
    if (
        normalizer.dtype is dtype
        and normalizer.dim() == 0
        and normalizer.device == like.device
        and is_in_memory(normalizer)
    ):
        return normalizer
    check_layout("normalizer", normalizer)
    if normalizer.dim() != 0 and (not batch_dims or normalizer.shape != like.shape[:batch_dims]):
        several = f" or have shape {tuple(like.shape[:batch_dims])}, that of the loss" if batch_dims else ""
        way_out = "" if batch_dims else "; use normalizer.sum() or .squeeze()"
        raise ValueError(f"normalizer: a tensor must be 0-d{several}, got shape {tuple(normalizer.shape)}{way_out}")
    if normalizer.is_complex() or normalizer.is_quantized or normalizer.dtype is torch.bool:
        raise TypeError(f"normalizer: must be a real number, got {normalizer.dtype}")
    if normalizer.device != like.device:
        raise ValueError(f"normalizer: must be on the device of inputs, {like.device}, got {normalizer.device}")
    return in_dtype(normalizer, dtype).contiguous()

# Owns: the plain form of a checked call, in the order in which the native ops take it.
# Must not know: formulas, autograd, the native library.
from __future__ import annotations

import enum
from typing import NamedTuple

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _factors as factors
from ._arguments import Alpha, Normalizer, Targets


class Loss(enum.IntEnum):
    """The losses; the numbers are those of csrc/losses/parameters.h."""

    SIGMOID_FOCAL = 0
    QUALITY_FOCAL = 1
    VARIFOCAL = 2
    ASYMMETRIC = 3
    SOFTMAX_FOCAL = 4


class Call(NamedTuple):
    """The checked arguments of one call in the order of the native ops, tensors first."""

    targets: Tensor  # contiguous; class ids of shape inputs.shape[:-1], or dense of shape inputs.shape
    scores: Tensor | None  # [rows] in the accumulation dtype: the target of each positive id's class; None: 1
    weight: Tensor | None  # [rows or 1, classes or 1] in the accumulation dtype
    alpha: Tensor | None  # [classes] in the accumulation dtype
    normalizer: Tensor | None  # 0-d in the accumulation dtype
    loss: int
    gamma: float
    gamma_positive: float
    clip: float
    smoothing: float
    alpha_positive: float
    alpha_negative: float
    ignore_index: int | None
    divisor: int
    divisor_value: float

    @property
    def is_per_row(self) -> bool:
        """Whether the loss is one number a row and class ids know no background; else it is one a logit."""
        return self.loss == Loss.SOFTMAX_FOCAL

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self[:5]

    @property
    def scalars(self) -> tuple[object, ...]:
        return self[5:]


class PyramidCall(NamedTuple):
    """The checked arguments of a call on a pyramid, likewise."""

    targets: Tensor  # contiguous class ids [images, anchors of all levels]
    weight: Tensor | None  # [images, 1] or [images, anchors of all levels] in the accumulation dtype
    alpha: Tensor | None
    normalizer: Tensor | None
    classes: int
    gamma: float
    smoothing: float
    alpha_positive: float
    alpha_negative: float
    ignore_index: int | None
    divisor: int
    divisor_value: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        return self[:4]

    @property
    def scalars(self) -> tuple[object, ...]:
        return self[4:]


class Request(NamedTuple):
    """All that a loss function was asked for."""

    inputs: Tensor
    call: Call
    reduction: str
    overwrite_inputs: bool


def check(
    loss: Loss,
    inputs: Tensor,
    targets: Targets,
    alpha: Alpha,
    gamma: float,
    reduction: str,
    normalizer: Normalizer,
    weight: Tensor | None,
    ignore_index: int | None,
    overwrite_inputs: bool,
    *,
    gamma_positive: float = 0.0,
    clip: float = 0.0,
    smoothing: float = 0.0,
) -> Request:
    """Checks every argument before anything is computed."""
    arguments.check_inputs(inputs)
    scores = None
    if loss in (Loss.QUALITY_FOCAL, Loss.VARIFOCAL):
        targets, scores = arguments.check_scored(inputs, targets)
    dense, per_row = arguments.is_dense(inputs, targets), loss == Loss.SOFTMAX_FOCAL
    assert isinstance(targets, Tensor)  # is_dense has seen to it
    if dense and per_row and smoothing:
        raise ValueError(f"label_smoothing: needs class ids, got dense targets and {smoothing}; smooth the dense targets instead")
    if loss == Loss.VARIFOCAL:  # the only loss whose alpha is the factor of negatives alone
        alpha_positive, alpha_negative, alpha_tensor = 1.0, arguments.check_fraction("alpha", alpha), None
    else:
        most = torch.finfo(arguments.accumulation_dtype(inputs.dtype)).max if per_row else 1.0
        alpha_positive, alpha_negative, alpha_tensor = factors.check_alpha(alpha, inputs, most)
    divisor, divisor_value, divisor_tensor = factors.check_normalizer(normalizer, reduction, inputs, dense, per_row)
    plain_weight = factors.check_row_weight(weight, inputs) if per_row else factors.check_weight(weight, inputs)
    ignore_index = arguments.check_ignore_index(ignore_index)
    if not isinstance(overwrite_inputs, bool):
        raise TypeError(f"overwrite_inputs: must be a bool, got {type(overwrite_inputs).__name__}")
    if overwrite_inputs and torch.is_grad_enabled() and not (arguments.is_traced() or torch.is_inference_mode_enabled()):
        arguments.check_overwrite(inputs, targets, weight, scores)
    if dense and targets.dtype not in (inputs.dtype, torch.bool, torch.uint8):
        targets = targets.to(arguments.accumulation_dtype(inputs.dtype))
    call = Call(
        targets=targets.contiguous(),
        scores=scores,
        weight=plain_weight,
        alpha=alpha_tensor,
        normalizer=divisor_tensor,
        loss=int(loss),
        gamma=float(gamma),
        gamma_positive=float(gamma_positive),
        clip=float(clip),
        smoothing=float(smoothing),
        alpha_positive=alpha_positive,
        alpha_negative=alpha_negative,
        ignore_index=ignore_index,
        divisor=divisor,
        divisor_value=divisor_value,
    )
    return Request(inputs, call, reduction, overwrite_inputs)

# Owns: the plain form of a checked call, in the order in which the native ops take it.
# Must not know: formulas, autograd, the native library.
from __future__ import annotations

import enum
import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _factors as factors
from ._arguments import Alpha, Normalizer, Targets
from ._symbols import holds, quoted


class Loss(enum.IntEnum):
    """The losses; the numbers are those of csrc/losses/parameters.h."""

    __hash__ = int.__hash__  # enum's own is written in Python

    SIGMOID_FOCAL = 0
    QUALITY_FOCAL = 1
    VARIFOCAL = 2
    ASYMMETRIC = 3
    SOFTMAX_FOCAL = 4


class Call(NamedTuple):
    """The checked arguments of one call in the order of the native ops, tensors first.

    What torch.compile traces takes slices and functions: the compiler of torch 2.10 does not know a NamedTuple's properties.
    """

    targets: Tensor  # contiguous; class ids of shape inputs.shape[:-1], or dense of shape inputs.shape
    scores: Tensor | None  # [rows] in the accumulation dtype: the target of each positive id's class; None: 1
    weight: Tensor | None  # [rows or 1, classes or 1] in the accumulation dtype
    alpha: Tensor | None  # [classes] in the accumulation dtype
    normalizer: Tensor | None  # 0-d in the accumulation dtype
    loss: int
    gamma: float
    ignore_index: int | None
    # What most calls leave as it is, the rarest last: torch spends 0.2 microseconds on each argument that an op is given.
    alpha_positive: float = 1.0
    alpha_negative: float = 1.0
    smoothing: float = 0.0
    divisor: int = 0
    divisor_value: float = 1.0
    gamma_positive: float = 0.0
    clip: float = 0.0

    @property
    def tensors(self) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self[:5]

    @property
    def scalars(self) -> tuple[object, ...]:
        return self[5:]


def is_per_row(call: Call) -> bool:
    """Whether the loss is one number a row and class ids know no background; else it is one a logit."""
    return call.loss == Loss.SOFTMAX_FOCAL


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
    # How many fields of `call` are not at their defaults to the end, if the request is ordinary: neither traced nor overwriting, and its
    # only tensors are logits and targets, contiguous and of no subclass. Else None.
    ordinary: int | None


# The ordinary requests that passed, as what their rules read, with `ordinary` and the scalars of their calls. No tensor is kept.
_passed: dict[tuple[object, ...], tuple[int, tuple[Any, ...]]] = {}
MOST_PASSED = 1024
# Values that are equal are one to every rule, if they are of these types: no bool, no tensor. Only ignore_index may not be a float.
PLAIN_TYPES = {int, float, str, type(None)}


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
    gamma_positive: float = 0.0,
    clip: float | None = 0.0,
    smoothing: float = 0.0,
) -> Request:
    """Checks every argument before anything is computed. An ordinary request that is like one before it is not checked again."""
    key: tuple[object, ...] | None = None
    numbers = (alpha, gamma, reduction, normalizer, ignore_index, gamma_positive, clip, smoothing)
    is_pair = type(targets) is tuple and len(targets) == 2
    ids, scores = targets if is_pair else (targets, None)  # of any type as yet
    traced = arguments.is_traced()
    if weight is None and overwrite_inputs is False and not traced and PLAIN_TYPES.issuperset(map(type, numbers)):
        kinds = (_kind(inputs), _kind(ids), is_pair and _kind(scores))
        if None not in kinds:
            key = (loss, kinds, numbers, type(ignore_index))
            passed = _passed.get(key)
            if passed is not None:
                return Request(inputs, Call(ids, scores, None, None, None, *passed[1]), reduction, False, passed[0])  # type: ignore[arg-type]
    by_rules = _check_quietly if traced else _check_by_rules
    call = by_rules(
        loss, inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs, gamma_positive, clip, smoothing
    )
    if key is None or call.targets is not ids or call.scores is not scores:  # not ordinary, or not without a conversion
        return Request(inputs, call, reduction, overwrite_inputs, None)
    if len(_passed) >= MOST_PASSED:
        _passed.clear()
    given = len(call)
    while Call._fields[given - 1] in Call._field_defaults and call[given - 1] == Call._field_defaults[Call._fields[given - 1]]:
        given -= 1
    _passed[key] = given, call.scalars
    return Request(inputs, call, reduction, overwrite_inputs, given)


def _kind(tensor: object) -> tuple[object, ...] | None:
    """What the rules read of a tensor in memory as the ops take it; None of anything else."""
    if type(tensor) is Tensor and tensor.layout is torch.strided and not tensor.is_nested and tensor.is_contiguous():
        return tensor.dtype, tensor.device, tensor.shape
    return None


def check_numbers(loss: int, gamma: float, gamma_positive: float, clip: float | None, smoothing: float) -> tuple[float, float, float, float]:
    """The numbers of a loss in their own rules, as floats; those that it does not have pass."""
    if loss == Loss.ASYMMETRIC:
        gamma = arguments.check_exponent("gamma_neg", gamma)
        gamma_positive = arguments.check_exponent("gamma_pos", gamma_positive)
        clip = None if clip is None else arguments.check_fraction("clip", clip, below_one=True)
    elif loss == Loss.QUALITY_FOCAL:
        gamma = arguments.check_exponent("beta", gamma, 1, "2 is the paper's choice; below 1 the derivative is infinite where p meets the score")
    else:
        gamma = arguments.check_exponent("gamma", gamma)
        smoothing = arguments.check_fraction("label_smoothing", smoothing)
    return gamma, gamma_positive, 0.0 if clip is None else clip, smoothing


def check_numbers_of(call: Call | PyramidCall) -> None:
    """The rules of a call's numbers, where their values are seen for the first time when the ops run."""
    loss = getattr(call, "loss", Loss.SIGMOID_FOCAL)
    check_numbers(loss, call.gamma, getattr(call, "gamma_positive", 0.0), getattr(call, "clip", 0.0), call.smoothing)
    most = math.inf if loss == Loss.SOFTMAX_FOCAL else 1.0
    factors = (call.alpha_positive, most if loss == Loss.SOFTMAX_FOCAL else call.alpha_negative)
    if not all(0 <= factor <= most for factor in factors) or call.alpha_positive == math.inf:
        raise ValueError(f"alpha: must be {'in [0, 1]' if most == 1 else 'finite and >= 0'}, got {call.alpha_positive if loss != Loss.VARIFOCAL else call.alpha_negative}")


# The numbers that passed, once more.
_check_plain_numbers = functools.lru_cache(MOST_PASSED, typed=True)(check_numbers)


def _check_by_rules(
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
    gamma_positive: float,
    clip: float | None,
    smoothing: float,
) -> Call:
    plain = not arguments.is_traced() and PLAIN_TYPES.issuperset(map(type, (gamma, gamma_positive, clip, smoothing)))
    check_them = _check_plain_numbers if plain else check_numbers
    gamma, gamma_positive, clip, smoothing = check_them(loss, gamma, gamma_positive, clip, smoothing)
    arguments.check_inputs(inputs)
    scores = None
    if loss in (Loss.QUALITY_FOCAL, Loss.VARIFOCAL):
        targets, scores = arguments.check_scored(inputs, targets)
    dense, per_row = arguments.is_dense(inputs, targets), loss == Loss.SOFTMAX_FOCAL
    assert isinstance(targets, Tensor)  # is_dense has seen to it
    if dense and per_row and holds(smoothing != 0):
        raise ValueError(f"label_smoothing: needs class ids, got dense targets and {quoted(smoothing)}; smooth the dense targets instead")
    if loss == Loss.VARIFOCAL:  # the only loss whose alpha is the factor of negatives alone
        alpha_positive, alpha_negative, alpha_tensor = 1.0, arguments.check_fraction("alpha", alpha), None
    else:
        most = torch.finfo(arguments.accumulation_dtype(inputs.dtype)).max if per_row else 1.0
        alpha_positive, alpha_negative, alpha_tensor = factors.check_alpha(alpha, inputs, most)
    ignore_index = arguments.check_ignore_index(ignore_index)
    ignores_some = not dense or arguments.ignores_some(targets, ignore_index)
    divisor, divisor_value, divisor_tensor = factors.check_normalizer(normalizer, reduction, inputs, dense, per_row, ignores_some)
    plain_weight = factors.check_row_weight(weight, inputs) if per_row else factors.check_weight(weight, inputs)
    if not isinstance(overwrite_inputs, bool):
        raise TypeError(f"overwrite_inputs: must be a bool, got {type(overwrite_inputs).__name__}")
    if overwrite_inputs and torch.is_grad_enabled() and not (arguments.is_traced() or torch.is_inference_mode_enabled()):
        arguments.check_overwrite(inputs, targets, weight, scores)
    if dense and not (targets.is_floating_point() or targets.dtype is torch.bool):
        targets, ignore_index = arguments.as_stored_integers(targets, ignore_index)
    elif dense and targets.dtype not in (inputs.dtype, torch.bool):
        targets = targets.to(arguments.accumulation_dtype(inputs.dtype))
    return Call(
        targets=targets.contiguous(),
        scores=scores,
        weight=plain_weight,
        alpha=alpha_tensor,
        normalizer=divisor_tensor,
        loss=int(loss),
        gamma=gamma,
        gamma_positive=gamma_positive,
        clip=clip,
        smoothing=smoothing,
        alpha_positive=alpha_positive,
        alpha_negative=alpha_negative,
        ignore_index=ignore_index,
        divisor=divisor,
        divisor_value=divisor_value,
    )


_check_quietly = arguments.quiet_under_jit_trace(_check_by_rules)

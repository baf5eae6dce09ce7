# Owns: the textbook formulas in plain PyTorch: the oracle of every test, and the fallback wherever the fused kernels do not go.
# Must not know: the native library.
"""The same functions as :mod:`focal_ext`, in plain PyTorch and differentiable in every tensor, to any order.

Written for exactness: no ``1 - p``, no ``x - x t``, no ``F.softplus`` (its threshold of 20 costs 9e-11 in float64).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _arguments as arguments
from ._arguments import Alpha, Call, Normalizer

# Beyond it sigmoid(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 * inf.
LIMIT = 800.0


def _bounded(x: Tensor, limit: float) -> Tensor:
    """x.clamp(-limit, limit), but the gradient of NaN is NaN and not 0."""
    return torch.where(x > limit, limit, torch.where(x < -limit, -limit, x))


def _power(u: Tensor, gamma: float, x: Tensor, t: Tensor) -> Tensor:
    """u ** gamma for u = 1 - p_t. Below gamma 1 its derivative is infinite at u = 0, and at a large gamma the rounding of u near 1
    counts: there hard targets go through log u, which is at hand."""
    gamma = min(gamma, 1e36)
    if 1 <= gamma <= 16 or t.requires_grad:
        return u.pow(gamma)
    hard = (t == 0) | (t == 1)
    log_u = F.logsigmoid(torch.where(t == 1, -x, x))
    return torch.where(hard, torch.exp(gamma * log_u), torch.where(hard, torch.ones_like(u), u).pow(gamma))


def _focal(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """u^gamma ce with u = p (1-t) + q t = 1 - p_t, of logits x and targets t in [0, 1] (Lin et al. 2017, eq. 5, without alpha_t)."""
    bounded = _bounded(x, LIMIT)
    ce = -(F.logsigmoid(-bounded) * (1 - t)) - F.logsigmoid(bounded) * t
    above = torch.where((x > LIMIT) & (t != 1), (x - LIMIT) * (1 - t), 0.0)  # strictly: at the limit itself bounded has the gradient
    below = torch.where((x < -LIMIT) & (t != 0), (-x - LIMIT) * t, 0.0)
    ce = ce + above + below
    if gamma == 0:
        return ce
    u = torch.sigmoid(bounded) * (1 - t) + torch.sigmoid(-bounded) * t
    power = _power(u, gamma, bounded, t)
    # An infinite cross entropy stays infinite where u^gamma underflows.
    return torch.where(ce.isinf(), power.clamp(min=torch.finfo(x.dtype).tiny), power) * ce


def _one_hot(ids: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (ids[:, None] == torch.arange(classes, device=ids.device)).to(dtype)


def _widened(ids: Tensor) -> Tensor:
    """int64 ids; a uint64 beyond int64 becomes the largest int64, outside every range, instead of a negative number."""
    wide = ids.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(torch.int64).max, wide) if ids.dtype == torch.uint64 else wide


def bad_ids(ids: Tensor, classes: int, ignore_index: int | None) -> Tensor:
    """Where a widened class id is neither ignored, nor in [0, classes), nor background (-1 or classes)."""
    bad = (ids < -1) | (ids > classes)
    return bad if ignore_index is None else bad & (ids != ignore_index)


def compute(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    """The loss of checked arguments; class ids outside the range give NaN."""
    classes = inputs.shape[-1]
    dtype = arguments.accumulation_dtype(inputs.dtype)
    x = inputs.reshape(-1, classes) if classes else inputs.reshape(inputs.shape[:-1].numel(), 0)
    x = x.to(dtype)
    kept = torch.ones((), dtype=dtype, device=x.device)
    positives = ignored = bad = None
    if call.targets.shape == inputs.shape:
        t = call.targets.reshape(x.shape).to(dtype)
    else:
        ids = _widened(call.targets.reshape(-1))
        ignored = torch.zeros_like(ids, dtype=torch.bool) if call.ignore_index is None else ids == call.ignore_index
        bad = bad_ids(ids, classes, call.ignore_index)
        t = _one_hot(torch.where(ignored, -1, ids), classes, dtype)
        positives = ((ids >= 0) & (ids < classes) & ~ignored).sum()
        kept = (~ignored).sum() * classes
        x = torch.where(ignored[:, None], 0.0, x)  # an ignored logit contributes exactly 0, NaN and inf included
    positive, negative = (call.alpha, 1 - call.alpha) if call.alpha is not None else (call.alpha_positive, call.alpha_negative)
    factor = positive * t + negative * (1 - t)
    x = torch.where(factor == 0, _bounded(x, 3e38), x)  # alpha 0 switches a logit off, also an infinite one
    loss = factor * _focal(x, t, call.gamma)
    if call.weight is not None:
        loss = loss * call.weight
    if ignored is not None and bad is not None:
        loss = torch.where(ignored[:, None], 0.0, loss)
        loss = loss * torch.where(bad, torch.nan, 1.0).to(dtype)[:, None]
    if reduction == "none":
        return loss.reshape(inputs.shape).to(inputs.dtype)
    if loss.numel() == 0:
        return loss.sum()
    divisor = {
        arguments.BY_VALUE: call.divisor_value,
        arguments.BY_TENSOR: call.normalizer,
        arguments.BY_KEPT: kept.clamp(min=1),
        arguments.BY_POSITIVES: positives.clamp(min=1) if positives is not None else None,
    }[call.divisor]
    return loss.sum() / divisor  # type: ignore[operator]


def first_bad_id(call: Call, classes: int) -> int:
    """Flat position of the first class id out of range; -1 if there is none."""
    bad = bad_ids(_widened(call.targets.flatten()), classes, call.ignore_index).nonzero()
    return int(bad[0]) if bad.numel() else -1


def checked(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    """compute(), after an error for the first bad class id where values can be read for free."""
    targets, classes = call.targets, inputs.shape[-1]
    if targets.dim() < inputs.dim() and arguments.values_are_readable(inputs, targets):
        arguments.check_ids(first_bad_id(call, classes), targets, classes, call.ignore_index)
    return compute(inputs, call, reduction)


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
) -> Tensor:
    """:func:`focal_ext.sigmoid_focal_loss` in plain PyTorch: same arguments, same errors, same results to rounding.

    Differentiable in inputs, dense targets, weight, alpha and normalizer. ``overwrite_inputs`` is checked and has no other effect.
    """
    call = arguments.check(inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs)
    return checked(inputs, call, reduction)

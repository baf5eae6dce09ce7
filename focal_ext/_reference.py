# Owns: the textbook formulas in plain PyTorch: the oracle of every test, and the fallback wherever the fused kernels do not go.
# Must not know: the native library, signatures.
#
# Written for exactness: no 1 - p of a p near 1, no x - x t, no F.softplus (its threshold of 20 costs 9e-11 in float64), no
# second derivative by a power of what underflows.
from __future__ import annotations

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _factors as factors
from ._call import Call, Loss, is_per_row
from ._power import powered
from ._softmax_reference import row_losses
from ._symbols import at_most, holds, is_constant, unless_constant
from ._torch_private import is_jit_traced

# Beyond it sigmoid(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 * inf.
LIMIT = 800.0


def _bounded(x: Tensor, limit: float) -> Tensor:
    """x.clamp(-limit, limit), but the gradient of NaN is NaN and not 0."""
    return torch.where(x > limit, limit, torch.where(x < -limit, -limit, x))


def _softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), also known as -log sigmoid(-x). F.logsigmoid's second derivative takes 1 - y of a y near 1 and is 0 from 37 on."""
    above = x > 0
    return torch.where(above, x, 0.0) + torch.log1p(torch.exp(torch.where(above, -x, x)))


def _power(u: Tensor, gamma: float, x: Tensor, t: Tensor) -> Tensor:
    """u ** gamma for u = 1 - p_t. Of a hard target log u is at hand, and is the value's base where u is not: below gamma 1, where u
    underflows long before its power, and at a large gamma, where u near 1 is rounded; and of a gamma that changes from step to step of a
    graph, which a question about it would compile anew for each answer. It errs by roundings of gamma log u."""
    exponent = at_most(gamma, 1e36, u)
    if t.requires_grad:
        return u.pow(exponent)
    hard = (t == 0) | (t == 1)
    log_u = -_softplus(torch.where(t == 1, x, -x))
    value = u.pow(exponent) if is_constant(gamma) and 1 <= gamma <= 16 else torch.exp(exponent * log_u)
    return torch.where(hard, powered(value, log_u, exponent), torch.where(hard, 1.0, u).pow(exponent))


def _sigmoids(x: Tensor) -> tuple[Tensor, Tensor]:
    """p and q = 1 - p, constant beyond the limit. Autograd differentiates sigmoid as y (1-y), which is 0 where y rounds to 1: so the
    larger of the two is 1 minus the smaller, whose derivative is exact."""
    bounded = _bounded(x, LIMIT)
    p, q = torch.sigmoid(bounded), torch.sigmoid(-bounded)
    return torch.where(x > 0, 1 - q, p), torch.where(x > 0, q, 1 - p)


def _cross_entropy(x: Tensor, t: Tensor, rest: Tensor | None = None) -> Tensor:
    """-t log p - rest log q, linear beyond the limit; rest is 1 - t, given where the difference would lose its digits."""
    rest = 1 - t if rest is None else rest
    bounded = _bounded(x, LIMIT)
    ce = _softplus(bounded) * rest + _softplus(-bounded) * t
    above = torch.where((x > LIMIT) & (rest != 0), (x - LIMIT) * rest, 0.0)  # strictly: at the limit itself bounded has the gradient
    below = torch.where((x < -LIMIT) & (t != 0), (-x - LIMIT) * t, 0.0)
    return ce + above + below


def _focal(x: Tensor, t: Tensor, gamma: float, smoothing: float = 0.0) -> Tensor:
    """u^gamma ce with u = p (1-t) + q t = 1 - p_t, of logits x and targets t in [0, 1] (Lin et al. 2017, eq. 5, without alpha_t)."""
    ce = _cross_entropy(x, t * (1 - smoothing) + smoothing / 2, (1 - t) * (1 - smoothing) + smoothing / 2)
    if holds(gamma == 0, unknown=False):
        return ce
    p, q = _sigmoids(x)
    u = p * (1 - t) + q * t
    # A smoothed label's cross entropy grows on the winning side too, so there p^gamma is needed beyond the limit.
    power = _power(u, gamma, _bounded(x, 1e30 if holds(smoothing != 0) else LIMIT), t)
    # An infinite cross entropy stays infinite where u^gamma underflows, but not where u is 0: smoothing on the winning side.
    won = ce.isinf() & (u == 0)
    return torch.where(ce.isinf() & ~won, power.clamp(min=torch.finfo(x.dtype).tiny), power) * torch.where(won, 0.0, ce)


def _sigmoid_focal(x: Tensor, t: Tensor, call: Call) -> Tensor:
    return _focal(x, t, call.gamma, call.smoothing)


def _quality_focal(x: Tensor, t: Tensor, call: Call) -> Tensor:
    """|p - t|^beta ce (Li et al. 2020, eq. 4)."""
    p, q = _sigmoids(x)
    hard = torch.zeros_like(t, dtype=torch.bool) if t.requires_grad else (t == 0) | (t == 1)
    distance = torch.where(hard, 0.5, p * (1 - t) - q * t).abs().pow(unless_constant(call.gamma, x))  # its kink at p = t has no second derivative below beta 2
    ends = _power(torch.where(t == 1, q, p), call.gamma, _bounded(x, LIMIT), t.detach().round())
    return torch.where(hard, ends, distance) * _cross_entropy(x, t)


def _varifocal(x: Tensor, t: Tensor, call: Call) -> Tensor:
    """t ce for t > 0, p^gamma ce otherwise (Zhang et al. 2021, eq. 2, without alpha)."""
    power = _power(_sigmoids(x)[0], call.gamma, _bounded(x, LIMIT), torch.zeros_like(x))
    return torch.where(t > 0, t, power) * _cross_entropy(x, t)


def _asymmetric(x: Tensor, t: Tensor, call: Call) -> Tensor:
    """t f+ + (1-t) f-, each the focal loss with its own gamma, f- of max(p - clip, 0) (Ridnik et al. 2021, eq. 7)."""
    ones = torch.ones_like(t)
    positive, negative = _focal(x, ones, call.gamma_positive), _focal(x, 0 * ones, call.gamma)
    if holds(call.clip > 0):
        p, q = _sigmoids(x)
        u, rest = p - call.clip, q + call.clip
        counts = ~(u <= 0)  # NaN counts
        minus_log = torch.where(u < 0.5, -torch.log1p(-torch.where(u < 0.5, u, 0.0)), -torch.log(rest))
        negative = torch.where(counts, torch.where(counts, u, 1.0).pow(unless_constant(call.gamma, u)) * minus_log, 0.0)
    return torch.where(t == 0, 0.0, t * positive) + torch.where(t == 1, 0.0, (1 - t) * negative)


_LOSSES = {
    Loss.SIGMOID_FOCAL: _sigmoid_focal,
    Loss.QUALITY_FOCAL: _quality_focal,
    Loss.VARIFOCAL: _varifocal,
    Loss.ASYMMETRIC: _asymmetric,
}
# The compiler of torch 2.10 cannot look a Loss up in a dict.
_BY_NUMBER = tuple(_LOSSES[loss] for loss in sorted(_LOSSES))


def _one_hot(ids: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (ids[:, None] == torch.arange(classes, device=ids.device)).to(dtype)


def widened(ids: Tensor) -> Tensor:
    """int64 ids; a uint64 beyond int64 becomes the largest int64, outside every range, instead of a negative number."""
    wide = ids.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(torch.int64).max, wide) if ids.dtype == torch.uint64 else wide


def bad_ids(ids: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> Tensor:
    """Where a widened class id is neither ignored, nor in [0, classes), nor background (-1 or classes, but 1 is no background of one class) where there is
    such a thing."""
    highest = classes if holds(classes != 1) else 0
    bad = (ids < -1) | (ids > highest) if background else (ids < 0) | (ids >= classes)
    return bad if ignore_index is None else bad & (ids != ignore_index)


def _element_losses(x: Tensor, t: Tensor, call: Call) -> Tensor:
    """The loss of each logit, alpha included."""
    positive, negative = (call.alpha, 1 - call.alpha) if call.alpha is not None else (call.alpha_positive, call.alpha_negative)
    if call.loss == Loss.VARIFOCAL:
        factor = torch.where(t > 0, torch.ones_like(t), unless_constant(negative, t))
    elif call.loss == Loss.SIGMOID_FOCAL:
        factor = positive * t + negative * (1 - t)
    else:
        factor = torch.ones_like(t)
    x = torch.where(factor == 0, _bounded(x, 3e38), x)  # alpha 0 switches a logit off, also an infinite one
    return factor * _BY_NUMBER[call.loss](x, t, call)


@arguments.quiet_under_jit_trace
def compute(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    """The loss of checked arguments; class ids outside the range give NaN. Plain tensors beside DTensors are the same on all processes."""
    if arguments.is_distributed(inputs):
        from torch.distributed.tensor.experimental import implicit_replication

        if is_per_row(call) and any(placement.is_shard(inputs.dim() - 1) for placement in inputs.placements):  # type: ignore[attr-defined]
            raise ValueError("inputs: the softmax of a row needs all its classes, got a DTensor sharded by classes; use inputs.redistribute() to shard it by rows")
        with implicit_replication():
            return _compute(inputs, call, reduction)
    return _compute(inputs, call, reduction)


def _compute(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    classes = inputs.shape[-1]
    dtype = arguments.accumulation_dtype(inputs.dtype)
    x = inputs.reshape(-1, classes) if classes else inputs.reshape(inputs.shape[:-1].numel(), 0)
    x = x.to(dtype)
    if call.targets.shape == inputs.shape:
        dense = call.targets.reshape(x.shape)
        t = dense.to(dtype)
        ignored = torch.zeros_like(t, dtype=torch.bool) if call.ignore_index is None else dense.detach() == call.ignore_index
        bad = None if dense.is_floating_point() or dense.dtype is torch.bool else (t > 1) | (t < 0)
        bad = None if bad is None else bad & ~ignored
        if is_per_row(call):
            ignored = ignored.any(-1, keepdim=True)  # without one of its probabilities a row has no cross entropy
            bad = None if bad is None else bad.any(-1, keepdim=True) & ~ignored
        kept = positives = (~ignored).sum()
        x, t = torch.where(ignored, 0.0, x), torch.where(ignored, 0.0, t)
    else:
        ids = widened(call.targets.reshape(-1))
        ignored = torch.zeros_like(ids, dtype=torch.bool) if call.ignore_index is None else ids == call.ignore_index
        bad = bad_ids(ids, classes, call.ignore_index, not is_per_row(call))
        t = _one_hot(torch.where(ignored, -1, ids), classes, dtype)
        if call.scores is not None:
            t = torch.where(t == 1, call.scores[:, None], t)  # a score that is not read may be anything
        positives = ((ids >= 0) & (ids < classes) & ~ignored).sum()
        kept = (~ignored).sum() * classes
        ignored, bad = ignored[:, None], bad[:, None]
        x = torch.where(ignored, 0.0, x)  # an ignored logit contributes exactly 0, NaN and inf included
    if is_per_row(call):
        loss = row_losses(x, t, (call.alpha_positive if call.alpha is None else call.alpha) * t, call)
    else:
        loss = _element_losses(x, t, call)
    if call.weight is not None:
        loss = loss * call.weight
    loss = torch.where(ignored, 0.0, loss)
    if bad is not None:
        loss = loss * torch.where(bad, torch.nan, 1.0).to(dtype)
    if reduction == "none":
        return loss.reshape(inputs.shape[:-1] if is_per_row(call) else inputs.shape).to(inputs.dtype)
    if loss.numel() == 0:
        return loss.sum()
    if call.divisor == factors.BY_VALUE and reduction == "mean" and not is_compiling() and is_jit_traced():
        return loss.mean()  # divisor_value is the number of losses of the example that is traced
    divisor = {
        factors.BY_VALUE: call.divisor_value,
        factors.BY_TENSOR: call.normalizer,
        factors.BY_KEPT: kept.clamp(min=1),
        factors.BY_POSITIVES: positives.clamp(min=1),
    }[call.divisor]
    return loss.sum() / divisor  # type: ignore[operator]


def first_bad(targets: Tensor, classes: int, ignore_index: int | None, background: bool) -> int:
    """Flat position of the first class id out of range; -1 if there is none."""
    bad = bad_ids(widened(targets.flatten()), classes, ignore_index, background).nonzero()
    return int(bad[0]) if bad.numel() else -1


def checked(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    """compute(), after an error for the first bad class id where values can be read for free."""
    targets, classes = call.targets, inputs.shape[-1]
    if arguments.values_are_readable(inputs, targets):
        if targets.dim() < inputs.dim():
            arguments.check_ids(first_bad(targets, classes, call.ignore_index, not is_per_row(call)), targets, classes, call.ignore_index, not is_per_row(call))
        elif not (targets.is_floating_point() or targets.dtype is torch.bool):
            arguments.check_dense(first_bad(targets, 2, call.ignore_index, background=False), targets, call.ignore_index)
    return compute(inputs, call, reduction)

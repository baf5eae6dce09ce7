# Owns: the softmax focal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
#
# Let R be the sum of exp(x_j - max) over all logits but the largest. The largest logit has 1 - p = R / (1 + R) and
# -log p = log1p(R). All others have p <= 1/2, so that 1 - p, the logarithm of the whole sum and the derivatives lose
# no digits.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Alpha, Normalizer, check_exponent, check_fraction
from .._call import Request, check
from .._elementary import powered
from .._factors import check_alpha
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import at_most, holds, quoted


# Beyond it exp(-x) is 0 in float64 too: what lies outside is added linearly, so that an infinite logit meets no 0 *
# inf.
LIMIT = 800.0


def _log_rest(others: Tensor) -> Tensor:
    """log R, which is -inf where no other logit counts, with derivatives of 0 there."""
    alone = others.isneginf().all(-1, keepdim=True)
    return torch.where(alone, -torch.inf, torch.where(alone, 0.0, others).logsumexp(-1, keepdim=True))


def _power(u: Tensor, p: Tensor, others: Tensor, is_top: Tensor, gamma: float) -> Tensor:
    """u ** gamma for u = 1 - p. The largest logit's log u is log R - log1p(R). A large gamma needs the others' log u
    too, because their u near 1 has lost it to rounding."""
    exponent = at_most(gamma, 1e35, u)  # times a cross entropy of 800 it stays finite in float32
    log_rest = _log_rest(others)
    of_top = torch.where(log_rest.isneginf(), 0.0, log_rest) - torch.log1p(torch.exp(log_rest))
    log_u = torch.where(is_top, of_top, torch.log1p(-torch.where(is_top, 0.0, p)))
    value = u.detach().pow(exponent)
    return powered(
        torch.where(is_top, value, torch.exp(exponent * log_u)) if holds(gamma > 16) else value, log_u, exponent
    )


def _formula(x: Tensor, t: Tensor, factor: Tensor, gamma: float, label_smoothing: float) -> Tensor:
    """sum_c factor_c u_c^gamma (-log p_c) of [rows, classes] logits, as [rows, 1]; `factor` is alpha_c t_c, `t` the
    targets."""
    rows, classes = x.shape
    if classes == 0:
        return x.sum(-1, keepdim=True)
    top = x.detach().argmax(-1, keepdim=True)
    is_top = top == torch.arange(classes, device=x.device)
    largest = x.gather(-1, top)
    others = torch.where(is_top, -torch.inf, x - largest)
    rest = torch.exp(others).sum(-1, keepdim=True)
    # Where the largest p is below 1/2, its logit is a constant for all others: their derivatives by it would be 1 minus
    # nearly 1. Above 1/2 it is none, as a constant would cost the second derivative its digits; nor is an infinite one,
    # on which all others depend.
    shift = torch.where(largest.isinf() | (rest < 1), largest, largest.detach())
    z = torch.where(is_top & (largest.isinf() | (rest < 1)), 0.0, x - shift)
    total = torch.exp(z).sum(-1, keepdim=True)
    p = torch.exp(z) / total
    u = torch.where(is_top, rest / (1 + rest), 1 - p)
    log_total = torch.where(is_top, torch.log1p(rest), torch.log(total))
    z = torch.where(is_top, 0.0, z)
    near = torch.where(z < -LIMIT, -LIMIT, z)
    beyond = torch.where(z < -LIMIT, -LIMIT - z, 0.0)  # there p is 0 and u^gamma 1

    power = torch.ones_like(u) if holds(gamma == 0, unknown=False) else _power(u, p, others, is_top, gamma)
    if holds(label_smoothing != 0):
        # The modulating factor and alpha are those of the class id; the cross entropy is that of the smoothed target.
        power, factor = (power * t).sum(-1, keepdim=True), factor.sum(-1, keepdim=True)
        t = t * (1 - label_smoothing) + label_smoothing / classes
        beyond = torch.where((t == 0) | (factor == 0), 0.0, beyond)
        won = power == 0
        inside = power * (t * (log_total - near)).sum(-1, keepdim=True)
        outside = power * (t * torch.where(won, 0.0, beyond)).sum(-1, keepdim=True)
        return factor * (inside + torch.where(won, 0.0, outside))
    beyond = torch.where(factor == 0, 0.0, beyond)
    return (factor * (power * (log_total - near) + beyond)).sum(-1, keepdim=True)


def _parameters(gamma: float, label_smoothing: float) -> tuple[float, ...]:
    return check_exponent("gamma", gamma), check_fraction("label_smoothing", label_smoothing)


MOST_ALPHA = torch.finfo(torch.float32).max


def _alpha(alpha: float | None) -> tuple[float, float]:
    return check_alpha(alpha, MOST_ALPHA)


def _check_dense(gamma: float, label_smoothing: float) -> None:
    if holds(label_smoothing != 0):
        raise ValueError(
            f"label_smoothing: needs class ids, got dense targets and {quoted(label_smoothing)}; smooth the dense "
            "targets instead"
        )


SPEC = LossSpec(
    number=4,
    parameters=_parameters,
    formula=_formula,
    alpha=_alpha,
    most_alpha=MOST_ALPHA,
    is_per_row=True,
    has_cuda_levels=True,
    check_dense=_check_dense,
    has_class_alpha=True,
)


@fused(SPEC)
def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Alpha = None,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """Softmax focal loss of every row, sum_c alpha_c t_c (1 - p_c)^gamma (-log p_c) with p the row's softmax, fused.

    For gamma 0 without alpha it is equivalent to ``torch.nn.functional.cross_entropy(inputs, targets,
    ignore_index=...)``, with the classes in the last dimension of ``inputs``; for a float alpha to mmcv's
    ``softmax_focal_loss``. A form seen in tutorials averages N * C products with a one-hot instead of N rows: it is
    this loss divided by C.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`. A row with several logits of +inf, or of
            -inf only, is NaN.
        targets: one of two, told by shape. Class ids of shape ``inputs.shape[:-1]`` and any integer dtype, in [0, C) or
            ``ignore_index``; background, if there is one, is a class like others. Dense labels of shape
            ``inputs.shape``: bool, integers of 0 and 1, or float probabilities, whose values are not checked.
        alpha: factor of the loss, finite and >= 0: a float for every row, a tensor or sequence of C floats for the
            target's class. None or -1: off.
        gamma: focusing exponent, finite and >= 0. 0 is cross entropy.
        reduction: "none" returns the loss of each row, of shape ``inputs.shape[:-1]``, in the inputs' dtype; "sum" and
            "mean" return a float32 (float64 for float64) number, "mean" over all rows that are not ignored, whatever
            alpha and weight are.
        normalizer: with "sum" only, as in :func:`sigmoid_focal_loss`; "positives" is the number of rows that are not
            ignored.
        weight: multiplies the loss of each row; broadcasts to ``inputs.shape[:-1]``.
        ignore_index: class id that is skipped: loss and gradient of such a row are exactly 0. A row of dense labels is
            skipped where any of its elements equals it. None: nothing is skipped.
        label_smoothing: s in [0, 1] moves s of the target's mass to all classes alike, in the cross entropy only: alpha
            and the modulating factor keep the class id. With class ids only; dense labels can be smoothed beforehand.
        overwrite_inputs, class_dim, batch_dims: as in :func:`sigmoid_focal_loss`; "mean" counts the rows of each batch
        index.

    Returns:
        The loss; 0 for empty inputs and when every row is ignored.

    Raises:
        TypeError, ValueError: as in :func:`sigmoid_focal_loss`; also for an id of -1 or C.

    Example:
        >>> logits = torch.randn(8, 80, requires_grad=True)
        >>> softmax_focal_loss(logits, torch.randint(80, (8,)), alpha=0.25).backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, alpha, shared, gamma, label_smoothing)


SoftmaxFocalLoss = module_of(softmax_focal_loss)

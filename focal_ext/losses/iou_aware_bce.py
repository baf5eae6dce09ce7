# Owns: the IoU-aware cross entropy: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent, check_fraction
from .._call import Request, check
from .._elementary import bounded, cross_entropy, negative_modulator, power_of_score, softplus
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import unless_constant

LEAST = 0.01  # of a positive's target


def _parameters(alpha: float, gamma: float) -> tuple[float, ...]:
    return check_fraction("alpha", alpha), check_exponent("gamma", gamma)


def _target(x: Tensor, scores: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """max(p^alpha score^(1-alpha), 0.01) and 1 minus that."""
    x, scores = x.detach(), scores.detach()
    of_p, of_score = unless_constant(alpha, x), unless_constant(1 - alpha, x)
    log_p = -softplus(-bounded(x, 1e30))
    target = torch.exp(of_p * log_p) * power_of_score(scores, of_score)
    target = torch.where(target < LEAST, LEAST, target)
    is_near = (target > 0.6) & (target <= 1) & (scores > 0) & (scores <= 1)
    log_target = of_p * log_p + of_score * torch.log(torch.where(is_near, scores, 1.0))
    return target, torch.where(is_near, -torch.expm1(log_target), 1 - target)


def _formula(x: Tensor, t: Tensor, positive: Tensor, alpha: float, gamma: float) -> Tensor:
    """CE(max(p^alpha t^(1-alpha), 0.01)) of positives, with a constant target, p^gamma ce of negatives."""
    target, rest = _target(x, torch.where(positive, t, 1.0), alpha)
    ce = cross_entropy(x, torch.where(positive, target, t), torch.where(positive, rest, 1 - t))
    return torch.where(positive, 1.0, negative_modulator(x, gamma)) * ce


SPEC = LossSpec(
    number=6, parameters=_parameters, formula=_formula, needs_scores=True, splits=True, has_cuda_levels=True
)


@fused(SPEC)
def iou_aware_bce_loss(
    inputs: Tensor,
    targets: Targets,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """IoU-aware cross entropy: CE(p, t) of positives with t = max(p^alpha score^(1-alpha), 0.01), p^gamma CE(p, 0) of
    negatives, fused (after Cai et al. 2023, "Align-DETR").

    The target t is a constant: no gradient goes through its p. The gradient of negatives goes through p^gamma. LW-DETR,
    RF-DETR and SAM 3 train with it.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores) or dense scores in [0, 1], as in :func:`varifocal_loss`: the class that an id
            names is a positive whatever its score.
        alpha: share of p in a positive's target, in [0, 1].
        gamma: focusing exponent of negatives, finite and >= 0.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in
        :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> pair = torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])
        >>> iou_aware_bce_loss(logits, pair, reduction="sum").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, None, shared, alpha, gamma)


IouAwareBceLoss = module_of(iou_aware_bce_loss)

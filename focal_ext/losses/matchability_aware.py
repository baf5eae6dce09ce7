# Owns: the matchability-aware loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent, check_fraction
from .._call import Request, check
from .._elementary import cross_entropy, negative_modulator, power_of_score
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import unless_constant


def _parameters(gamma: float) -> tuple[float, ...]:
    return (check_exponent("gamma", gamma, hint="0 is cross entropy, 1.5 the paper's choice"),)


def _alpha(alpha: float | None) -> tuple[float, float]:
    """The factor of negatives alone."""
    return 1.0, 1.0 if alpha is None else check_fraction("alpha", alpha)


def _formula(x: Tensor, t: Tensor, positive: Tensor, gamma: float) -> Tensor:
    """CE(t^gamma) of positives, p^gamma ce of negatives with a constant p^gamma (Huang et al. 2025, eq. 3, without
    alpha)."""
    exponent = unless_constant(gamma, x)
    scored = positive & (t > 0) & (t < 1)
    target = power_of_score(torch.where(positive, t, 1.0), exponent)
    rest = torch.where(
        scored & (target > 0.6), -torch.expm1(exponent * torch.log(torch.where(scored, t, 1.0))), 1 - target
    )
    ce = cross_entropy(x, torch.where(positive, target, t), torch.where(positive, rest, 1 - t))
    return torch.where(positive, 1.0, negative_modulator(x, gamma, live=False)) * ce


SPEC = LossSpec(
    number=5,
    parameters=_parameters,
    formula=_formula,
    alpha=_alpha,
    needs_scores=True,
    splits=True,
    has_cuda_levels=True,
)


@fused(SPEC)
def matchability_aware_loss(
    inputs: Tensor,
    targets: Targets,
    gamma: float = 1.5,
    alpha: float | None = None,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """Matchability-aware loss: CE(p, t^gamma) of positives, p^gamma CE(p, 0) of negatives, fused (Huang et al. 2025,
    "DEIM", eq. 3).

    The factor p^gamma has no gradient, as in DEIM and DEIMv2: derivatives of all orders take it for a constant.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores) or dense scores in [0, 1], as in :func:`varifocal_loss`: the class that an id
            names is a positive whatever its score.
        gamma: exponent of scores and of the negatives' p, finite and >= 0.
        alpha: factor of negatives, in [0, 1]; None: 1.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in
        :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> pair = torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])
        >>> matchability_aware_loss(logits, pair, reduction="sum").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, alpha, shared, gamma)


MatchabilityAwareLoss = module_of(matchability_aware_loss)

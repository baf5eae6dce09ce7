# Owns: the varifocal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent, check_fraction
from .._call import Request, check
from .._elementary import LIMIT, bounded, cross_entropy, power, sigmoids
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import unless_constant


def _parameters(gamma: float) -> tuple[float, ...]:
    return (check_exponent("gamma", gamma),)


def _alpha(alpha: float) -> tuple[float, float]:
    """The factor of negatives alone, which no other loss's alpha is."""
    return 1.0, check_fraction("alpha", alpha)


def _factor(t: Tensor, of_one: float | Tensor, of_zero: float | Tensor) -> Tensor:
    return torch.where(t > 0, torch.ones_like(t), unless_constant(of_zero, t))


def _formula(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """t ce for t > 0, p^gamma ce otherwise (Zhang et al. 2021, eq. 2, without alpha)."""
    modulator = power(sigmoids(x)[0], gamma, bounded(x, LIMIT), torch.zeros_like(x))
    return torch.where(t > 0, t, modulator) * cross_entropy(x, t)


SPEC = LossSpec(number=2, parameters=_parameters, formula=_formula, alpha=_alpha, factor=_factor, takes_scores=True)


@fused(SPEC)
def varifocal_loss(
    inputs: Tensor,
    targets: Targets,
    alpha: float = 0.75,
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
    """Varifocal loss: t CE(p, t) for t > 0, alpha p^gamma CE(p, t) otherwise, fused (Zhang et al. 2021, "VarifocalNet", eq. 2).

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores) or dense scores in [0, 1], as in :func:`quality_focal_loss`.
        alpha: factor of negatives, in [0, 1].
        gamma: focusing exponent of negatives, finite and >= 0.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> varifocal_loss(logits, (torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])), reduction="sum").backward()
    """
    return check(SPEC, inputs, targets, alpha, reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims, gamma)


VarifocalLoss = module_of(varifocal_loss)

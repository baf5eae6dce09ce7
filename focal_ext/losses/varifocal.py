# Owns: the varifocal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent, check_flag, check_fraction
from .._call import Request, check
from .._elementary import cross_entropy, negative_modulator, times
from .._module import module_of
from .._run import fused
from .._spec import LossSpec


def _parameters(gamma: float, modulator_gradient: bool) -> tuple[float, ...]:
    return check_exponent("gamma", gamma), check_flag("modulator_gradient", modulator_gradient)


def _alpha(alpha: float) -> tuple[float, float]:
    """The factor of negatives alone."""
    return 1.0, check_fraction("alpha", alpha)


def _formula(x: Tensor, t: Tensor, positive: Tensor, gamma: float, live: float) -> Tensor:
    """t ce of positives, p^gamma ce of negatives (Zhang et al. 2021, eq. 2, without alpha)."""
    return times(torch.where(positive, t, negative_modulator(x, gamma, live)), cross_entropy(x, t))


SPEC = LossSpec(
    number=2,
    parameters=_parameters,
    formula=_formula,
    alpha=_alpha,
    needs_scores=True,
    splits=True,
    has_cuda_levels=True,
)


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
    modulator_gradient: bool = True,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """Varifocal loss: t CE(p, t) of positives, alpha p^gamma CE(p, t) of negatives, fused (Zhang et al. 2021,
    "VarifocalNet", eq. 2).

    RT-DETR and D-FINE take p^gamma for a constant: their loss is ``modulator_gradient=False``. The default has the same
    value, and a gradient of negatives that is up to 1 + gamma times as large.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores) or dense scores in [0, 1], as in :func:`quality_focal_loss`. In a pair the class
            that an id names is a positive whatever its score, and counts 0 where the score is 0. A dense score is a
            positive where it is above 0, and else a negative.
        alpha: factor of negatives, in [0, 1].
        gamma: focusing exponent of negatives, finite and >= 0.
        modulator_gradient: as in :func:`sigmoid_focal_loss`, of the factor p^gamma.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in
        :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> pair = torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])
        >>> varifocal_loss(logits, pair, reduction="sum").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, alpha, shared, gamma, modulator_gradient)


VarifocalLoss = module_of(varifocal_loss)

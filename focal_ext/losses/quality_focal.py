# Owns: the quality focal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, as_float, check_exponent, check_flag, is_number
from .._call import Request, check
from .._elementary import LIMIT, bounded, cross_entropy, modulated, power, sigmoids
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import holds, unless_constant


def _parameters(beta: float, modulator_gradient: bool) -> tuple[float, ...]:
    live = check_flag("modulator_gradient", modulator_gradient)
    if is_number(beta) and holds(as_float(beta) == 0, unknown=False):
        return 0.0, live
    return check_exponent(
        "beta",
        beta,
        1,
        "2 is the paper's choice, 0 is cross entropy; between 0 and 1 the derivative is infinite where p meets the "
        "score",
    ), live


def _formula(x: Tensor, t: Tensor, beta: float, live: float) -> Tensor:
    """|p - t|^beta ce (Li et al. 2020, eq. 4)."""
    if holds(beta == 0, unknown=False):
        return cross_entropy(x, t)
    p, q = sigmoids(x)
    hard = torch.zeros_like(t, dtype=torch.bool) if t.requires_grad else (t == 0) | (t == 1)
    # its kink at p = t has no second derivative below beta 2
    distance = torch.where(hard, 0.5, p * (1 - t) - q * t).abs().pow(unless_constant(beta, x))
    ends = power(torch.where(t == 1, q, p), beta, bounded(x, LIMIT), t.detach().round())
    return modulated(torch.where(hard, ends, distance), live) * cross_entropy(x, t)


SPEC = LossSpec(number=1, parameters=_parameters, formula=_formula, needs_scores=True, has_cuda_levels=True)


@fused(SPEC)
def quality_focal_loss(
    inputs: Tensor,
    targets: Targets,
    beta: float = 2.0,
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
    """Quality focal loss, |t - p|^beta CE(p, t), fused (Li et al. 2020, "Generalized Focal Loss", eq. 4).

    The target t is a quality, such as the IoU of the predicted box, at the anchor's class and 0 elsewhere. The gradient
    goes through the modulating factor unless ``modulator_gradient`` is False.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores), both of shape ``inputs.shape[:-1]``: class ids as in :func:`sigmoid_focal_loss`,
            and a float score for each, read at positive ids only. Or dense scores in [0, 1] of shape ``inputs.shape``.
        beta: exponent, finite and >= 1, or 0 for cross entropy. Between 0 and 1 the derivative would be infinite where
            p meets the score.
        modulator_gradient: as in :func:`sigmoid_focal_loss`, of the factor abs(t - p)^beta.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in
        :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> pair = torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])
        >>> quality_focal_loss(logits, pair, reduction="sum").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, None, shared, beta, modulator_gradient)


QualityFocalLoss = module_of(quality_focal_loss)

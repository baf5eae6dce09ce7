# Owns: the Gaussian focal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent
from .._call import Request, check
from .._elementary import focal, power_of_score
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import unless_constant


def _parameters(alpha: float, beta: float) -> tuple[float, ...]:
    return check_exponent("alpha", alpha), check_exponent(
        "beta", beta, hint="4 is the paper's choice, 0 weighs all negatives alike"
    )


def _formula(x: Tensor, t: Tensor, alpha: float, beta: float) -> Tensor:
    """(1-p)^alpha (-log p) where t is 1, (1-t)^beta p^alpha (-log(1-p)) elsewhere (Law and Deng 2018, eq. 1)."""
    peak = t == 1
    loss = focal(x, peak.to(x.dtype), alpha)
    weight = torch.where(peak, 1.0, power_of_score(torch.where(peak, 0.0, 1 - t), unless_constant(beta, x)))
    # An infinite loss stays infinite where the power underflows.
    return torch.where(loss.isinf() & (weight == 0), torch.finfo(x.dtype).tiny, weight) * loss


SPEC = LossSpec(number=7, parameters=_parameters, formula=_formula, has_cuda_levels=True)


@fused(SPEC)
def gaussian_focal_loss(
    inputs: Tensor,
    targets: Targets,
    alpha: float = 2.0,
    beta: float = 4.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """Gaussian focal loss of heat maps of key points: (1 - p)^alpha (-log p) where the target is 1, (1 - t)^beta
    p^alpha (-log(1 - p)) elsewhere, fused (Law and Deng 2018, "CornerNet", eq. 1).

    CenterNet, CenterPoint and TransFusion train with it. No p is clamped, so confident errors keep their gradients.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`. Heat maps [N, C, H, W] with targets of their
            shape need no ``class_dim``, as every number counts by itself.
        targets: heat maps of the shape of inputs, in [0, 1], where exactly 1 is a peak. Keep them in float32 beside
            half-precision logits: bfloat16 rounds what is above 0.998 to 1. Or class ids, as in
            :func:`sigmoid_focal_loss`: peaks alone. Or a pair (ids, scores): the score is the target at the id's class.
        alpha: focusing exponent, finite and >= 0.
        beta: exponent of the distance to a peak, finite and >= 0.
        reduction, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in :func:`sigmoid_focal_loss`, and
        so are the errors.
        normalizer: as in :func:`sigmoid_focal_loss`. CenterNet divides by the number of peaks, ``(targets ==
            1).sum().clamp(min=1)``.

    Example:
        >>> logits, heatmaps = torch.randn(2, 10, 32, 32, requires_grad=True), torch.zeros(2, 10, 32, 32)
        >>> heatmaps[0, 3, 8, 8:10] = torch.tensor([1.0, 0.6])
        >>> peaks = (heatmaps == 1).sum().clamp(min=1)
        >>> gaussian_focal_loss(logits, heatmaps, reduction="sum", normalizer=peaks).backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, None, shared, alpha, beta)


GaussianFocalLoss = module_of(gaussian_focal_loss)

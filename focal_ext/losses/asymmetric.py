# Owns: the asymmetric loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

import torch
from torch import Tensor

from .._arguments import Normalizer, Targets, check_exponent, check_flag, check_fraction
from .._call import Request, check
from .._elementary import focal, modulated, sigmoids
from .._module import module_of
from .._run import fused
from .._spec import LossSpec
from .._symbols import holds, unless_constant


def _parameters(gamma_neg: float, gamma_pos: float, clip: float | None, modulator_gradient: bool) -> tuple[float, ...]:
    negative, positive = check_exponent("gamma_neg", gamma_neg), check_exponent("gamma_pos", gamma_pos)
    return (
        negative,
        positive,
        0.0 if clip is None else check_fraction("clip", clip, below_one=True),
        check_flag("modulator_gradient", modulator_gradient),
    )


def _formula(x: Tensor, t: Tensor, gamma_neg: float, gamma_pos: float, clip: float, live: float) -> Tensor:
    """t f+ + (1-t) f-, each the focal loss with its own gamma, f- of max(p - clip, 0) (Ridnik et al. 2021, eq. 7)."""
    ones = torch.ones_like(t)
    positive, negative = focal(x, ones, gamma_pos, live=live), focal(x, 0 * ones, gamma_neg, live=live)
    if holds(clip > 0):
        p, q = sigmoids(x)
        u, rest = p - clip, q + clip
        counts = ~(u <= 0)  # NaN counts
        minus_log = torch.where(u < 0.5, -torch.log1p(-torch.where(u < 0.5, u, 0.0)), -torch.log(rest))
        modulator = modulated(torch.where(counts, u, 1.0).pow(unless_constant(gamma_neg, u)), live)
        negative = torch.where(counts, modulator * minus_log, 0.0)
    return torch.where(t == 0, 0.0, t * positive) + torch.where(t == 1, 0.0, (1 - t) * negative)


SPEC = LossSpec(number=3, parameters=_parameters, formula=_formula)


@fused(SPEC)
def asymmetric_loss(
    inputs: Tensor,
    targets: Targets,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float | None = 0.05,
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
    """Asymmetric loss, t (1 - p)^gamma_pos (-log p) + (1 - t) u^gamma_neg (-log(1 - u)) with u = max(p - clip, 0),
    fused (Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", eq. 4 to 7).

    No logarithm is clamped, so confident errors keep their gradients (timm's stop below a logit of -18.4).

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: class ids, dense labels or a pair (ids, scores), as in :func:`sigmoid_focal_loss`. Several classes of
            one row need dense labels.
        gamma_neg, gamma_pos: focusing exponents of negatives and positives, finite and >= 0.
        clip: probability, in [0, 1), below which a negative counts nothing. None or 0: off.
        modulator_gradient: as in :func:`sigmoid_focal_loss`, of the factors (1 - p)^gamma_pos and u^gamma_neg. False is
            timm's ``disable_torch_grad_focal_loss``.
        reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims: as in
        :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits, labels = torch.randn(3, 80, requires_grad=True), torch.rand(3, 80) < 0.02
        >>> asymmetric_loss(logits, labels, reduction="sum").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, None, shared, gamma_neg, gamma_pos, clip, modulator_gradient)


AsymmetricLoss = module_of(asymmetric_loss)

# Owns: the losses as torch.nn modules, and the initialisation that goes with them.
# Must not know: kernels, autograd.
from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import _arguments as arguments
from . import losses
from ._arguments import Alpha, Normalizer


class SigmoidFocalLoss(nn.Module):
    """:func:`focal_ext.sigmoid_focal_loss` as a module, with the same arguments and defaults.

    Tensors among them move with the module, a Parameter is trained with it. What changes from step to step, ``weight`` and
    ``normalizer``, may be given to forward instead.

    Example:
        >>> criterion = SigmoidFocalLoss(reduction="sum", normalizer="positives")
        >>> criterion(torch.randn(8, 80, requires_grad=True), torch.randint(-1, 80, (8,))).backward()
    """

    alpha: Alpha
    normalizer: Normalizer
    weight: Tensor | None

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -2,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__()
        arguments.check_gamma(gamma)
        no_logits = torch.empty(0, 0)
        if not isinstance(normalizer, Tensor):
            arguments.check_normalizer(normalizer, reduction, no_logits, dense=False)
        if alpha is None or arguments.is_number(alpha):
            arguments.check_alpha(alpha, no_logits)
        for name, value in (("alpha", alpha), ("normalizer", normalizer), ("weight", weight)):
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)
        self.gamma = gamma
        self.reduction = reduction
        self.ignore_index = ignore_index
        self.overwrite_inputs = overwrite_inputs

    def forward(self, inputs: Tensor, targets: Tensor, weight: Tensor | None = None, normalizer: Normalizer = None) -> Tensor:
        return losses.sigmoid_focal_loss(
            inputs,
            targets,
            self.alpha,
            self.gamma,
            self.reduction,
            normalizer=self.normalizer if normalizer is None else normalizer,
            weight=self.weight if weight is None else weight,
            ignore_index=self.ignore_index,
            overwrite_inputs=self.overwrite_inputs,
        )

    def extra_repr(self) -> str:
        names = ("alpha", "gamma", "reduction", "normalizer", "ignore_index", "overwrite_inputs")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def init_prior_(conv: nn.Module, prior: float = 0.01) -> nn.Module:
    """Sets the bias of the last classification layer in place so that every score starts at ``prior`` (Lin et al. 2017, sec. 4.1).

    Args:
        conv: a layer with a bias, such as nn.Conv2d or nn.Linear; its weight is left alone.
        prior: the probability, in (0, 1), of each class at each anchor before training; 0.01 gives the bias -4.59511985.

    Returns:
        The layer.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior: must be in (0, 1), got {prior}")
    bias = getattr(conv, "bias", None)
    if not isinstance(bias, Tensor):
        raise ValueError(f"conv: must have a bias to hold the prior, got {type(conv).__name__} without one; build it with bias=True")
    with torch.no_grad():
        bias.fill_(-math.log((1 - prior) / prior))
    return conv

# Owns: the initialisation that goes with the losses.
# Must not know: losses, kernels, autograd, argument rules.
from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def init_prior_(conv: nn.Module, prior: float = 0.01) -> nn.Module:
    """Sets the bias of the last classification layer in place so that every score starts at ``prior`` (Lin et al. 2017,
    sec. 4.1).

    Args:
        conv: a layer with a bias, such as nn.Conv2d or nn.Linear; its weight is left alone.
        prior: the probability, in (0, 1), of each class at each anchor before training; 0.01 gives the bias
            -4.59511985.

    Returns:
        The layer.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior: must be in (0, 1), got {prior}")
    bias = getattr(conv, "bias", None)
    if not isinstance(bias, Tensor):
        raise ValueError(
            f"conv: must have a bias to hold the prior, got {type(conv).__name__} without one; build it with bias=True"
        )
    with torch.no_grad():
        bias.fill_(-math.log((1 - prior) / prior))
    return conv

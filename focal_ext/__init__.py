"""Focal loss for dense detectors, loss and gradient in one pass, on CUDA and on CPU."""

from . import reference
from ._native import build_info
from ._version import __version__
from .losses import sigmoid_focal_loss
from .modules import SigmoidFocalLoss, init_prior_

__all__ = ["SigmoidFocalLoss", "__version__", "build_info", "init_prior_", "reference", "sigmoid_focal_loss"]

"""Focal losses for dense detectors, loss and gradient in one pass, on CUDA and on CPU."""

from . import reference
from ._native import build_info
from ._version import __version__
from .fused_head import FusedFocalHead, conv_sigmoid_focal_loss
from .losses import asymmetric_loss, quality_focal_loss, sigmoid_focal_loss, varifocal_loss
from .modules import AsymmetricLoss, QualityFocalLoss, SigmoidFocalLoss, VarifocalLoss, init_prior_
from .pyramid import sigmoid_focal_loss_pyramid

__all__ = [
    "AsymmetricLoss",
    "FusedFocalHead",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "VarifocalLoss",
    "__version__",
    "asymmetric_loss",
    "build_info",
    "conv_sigmoid_focal_loss",
    "init_prior_",
    "quality_focal_loss",
    "reference",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_pyramid",
    "varifocal_loss",
]

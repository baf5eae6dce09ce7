"""Focal losses for dense detectors, loss and gradient in one pass, on CUDA and on CPU."""

import importlib
from types import ModuleType

from . import reference
from ._native import build_info
from ._version import __version__
from .fused_head import FusedFocalHead, conv_sigmoid_focal_loss
from .losses import asymmetric_loss, quality_focal_loss, sigmoid_focal_loss, softmax_focal_loss, varifocal_loss
from .modules import AsymmetricLoss, QualityFocalLoss, SigmoidFocalLoss, SoftmaxFocalLoss, VarifocalLoss, init_prior_
from .pyramid import sigmoid_focal_loss_pyramid

__all__ = [
    "AsymmetricLoss",
    "FusedFocalHead",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "__version__",
    "asymmetric_loss",
    "build_info",
    "compat",
    "conv_sigmoid_focal_loss",
    "distributed",
    "init_prior_",
    "quality_focal_loss",
    "reference",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_pyramid",
    "softmax_focal_loss",
    "varifocal_loss",
]


def __getattr__(name: str) -> ModuleType:
    if name in ("compat", "distributed"):  # imported when first used
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# Owns: the list of losses.
# Must not know: anything about them.
"""The losses as functions and as modules, one file for each."""

from .asymmetric import AsymmetricLoss, asymmetric_loss
from .quality_focal import QualityFocalLoss, quality_focal_loss
from .sigmoid_focal import SigmoidFocalLoss, sigmoid_focal_loss
from .softmax_focal import SoftmaxFocalLoss, softmax_focal_loss
from .varifocal import VarifocalLoss, varifocal_loss

__all__ = [
    "AsymmetricLoss",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "asymmetric_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]

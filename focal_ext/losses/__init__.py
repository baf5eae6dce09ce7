# Owns: the list of losses.
# Must not know: anything about them.
"""The losses as functions and as modules, one file for each."""

from .asymmetric import AsymmetricLoss, asymmetric_loss
from .gaussian_focal import GaussianFocalLoss, gaussian_focal_loss
from .iou_aware_bce import IouAwareBceLoss, iou_aware_bce_loss
from .matchability_aware import MatchabilityAwareLoss, matchability_aware_loss
from .quality_focal import QualityFocalLoss, quality_focal_loss
from .sigmoid_focal import SigmoidFocalLoss, sigmoid_focal_loss
from .softmax_focal import SoftmaxFocalLoss, softmax_focal_loss
from .varifocal import VarifocalLoss, varifocal_loss

__all__ = [
    "AsymmetricLoss",
    "GaussianFocalLoss",
    "IouAwareBceLoss",
    "MatchabilityAwareLoss",
    "QualityFocalLoss",
    "SigmoidFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "asymmetric_loss",
    "gaussian_focal_loss",
    "iou_aware_bce_loss",
    "matchability_aware_loss",
    "quality_focal_loss",
    "sigmoid_focal_loss",
    "softmax_focal_loss",
    "varifocal_loss",
]

"""Focal losses for dense detectors, loss and gradient in one pass, on CUDA and on CPU."""

import importlib
from types import ModuleType

from . import losses, pyramid, reference
from ._debug import debug
from ._native import build_info
from ._version import __version__
from .fused_head import FusedFocalHead, conv_sigmoid_focal_loss
from .losses import *  # noqa: F403  the list of losses
from .modules import init_prior_

__all__ = [  # noqa: F405  two are imported when first used
    "FusedFocalHead",
    "__version__",
    "build_info",
    "compat",
    "conv_sigmoid_focal_loss",
    "debug",
    "distributed",
    "init_prior_",
    "pyramid",
    "reference",
]
__all__ += losses.__all__


def __getattr__(name: str) -> ModuleType:
    if name in ("compat", "distributed"):  # imported when first used
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Focal losses under the names, argument orders, defaults, labels and normalisers of other libraries: one line to
switch.

One module per library; each is imported when first named, and none imports the library it stands in for.
docs/integrations.md has the line to change for each.
"""

# Owns: the list of libraries.
from __future__ import annotations

import importlib
from types import ModuleType

__all__ = [
    "apex",
    "detectron2",
    "detr",
    "effdet",
    "fvcore",
    "kornia",
    "mmcv",
    "mmdet",
    "mmseg",
    "monai",
    "openpcdet",
    "rfdetr",
    "sam2",
    "sam3",
    "segmentation_models_pytorch",
    "torchvision",
    "transformers",
    "ultralytics",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(__all__)}")

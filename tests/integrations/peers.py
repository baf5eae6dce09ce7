# Owns: the libraries' own losses; mmdet's are read from its installed files, because importing mmdet needs mmcv's
# compiled ops.
# Must not know: focal_ext.
from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import effdet.loss as effdet
import fvcore.nn.focal_loss as fvcore
import monai.losses as monai
import timm.loss as timm
import torchvision.ops as torchvision
import transformers.loss.loss_deformable_detr as transformers

__all__ = ["effdet", "fvcore", "mmdet", "monai", "timm", "torchvision", "transformers"]


def _mmdet_losses() -> dict[str, Any]:
    """Names of mmdet's three loss files, executed between stand-ins for what they import and do not call on the CPU."""
    found = importlib.util.find_spec("mmdet")
    root = Path(str(found.submodule_search_locations[0]))
    registry = ModuleType("mmdet.registry")
    registry.MODELS = type("Registry", (), {"register_module": staticmethod(lambda: lambda cls: cls)})
    ops = ModuleType("mmcv.ops")
    ops.sigmoid_focal_loss = None  # CUDA only
    packages = {name: ModuleType(name) for name in ("mmcv", "mmdet", "mmdet.models", "mmdet.models.losses")}
    for name, package in packages.items():
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))] if name.startswith("mmdet") else []
    stand_ins = {**packages, "mmdet.registry": registry, "mmcv.ops": ops}
    sys.modules.update(stand_ins)
    try:
        files = [
            importlib.import_module(f"mmdet.models.losses.{file}")
            for file in ("focal_loss", "gfocal_loss", "varifocal_loss")
        ]
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] in ("mmdet", "mmcv")]:
            del sys.modules[name]
    return {name: value for file in files for name, value in vars(file).items() if not name.startswith("_")}


mmdet = type(
    "mmdet",
    (),
    {
        name: staticmethod(value) if callable(value) and not isinstance(value, type) else value
        for name, value in _mmdet_losses().items()
    },
)

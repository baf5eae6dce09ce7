# Owns: the native library: finding it, loading it, saying what is in use, and the only door to its ops.
# Must not know: arguments, reductions, autograd rules.
from __future__ import annotations

import ctypes
import functools
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from ._torch_private import cuda_driver_version
from ._version import __version__

LIBRARY = Path(__file__).with_name("libfocal_ext.so")
REINSTALL = (
    "install torch >= 2.10 and a C++ compiler first, then build again from the sources: "
    "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."
)

ops = torch.ops.focal_ext  # resolves names lazily: empty until the library is loaded
convolution_backward = torch.ops.aten.convolution_backward  # both derivatives of a convolution without an autograd graph
OPS = ("loss", "loss_and_gradient", "loss_map", "gradient", "gradient_", "scale_", "first_bad_id")
PYRAMID_OPS = ("pyramid_loss", "pyramid_loss_and_gradient", "pyramid_gradient", "pyramid_gradient_")


def _fact(name: str) -> str | None:
    """What the library says of itself (csrc/build_facts.cpp); None if it does not know the name. Loads nothing twice."""
    function = getattr(ctypes.CDLL(str(LIBRARY)), "focal_ext_fact", None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    found: bytes | None = function(name.encode())
    return None if found is None else found.decode()


def _load() -> str | None:
    """Loads the library; returns why not, with the way out, or None."""
    if os.environ.get("FOCAL_EXT_NATIVE") == "0":
        return "FOCAL_EXT_NATIVE=0 in the environment asks for the reference"
    if not LIBRARY.exists():
        return f"this installation has no {LIBRARY.name}: it was built without a C++ compiler, without torch >= 2.10 beside it, or with FOCAL_EXT_NATIVE=0; {REINSTALL}"
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        cause = str(error.__cause__ or error)  # torch hides the linker's words, and the linker says this of a library for another processor
        if "No such file" in cause:
            cause = f"it is not for this processor ({platform.machine()}), or another library that it needs is missing: {cause}"
        return f"{LIBRARY.name} does not load into torch {torch.__version__} (needs torch >= 2.10): {cause}; {REINSTALL}"
    version = _fact("version")
    if version != __version__:
        return f"{LIBRARY.name} is of version {version or 'unknown'}, the package of {__version__}; {REINSTALL}"
    missing = [name for name in OPS + PYRAMID_OPS if not hasattr(ops, name)]
    return f"{LIBRARY.name} has no op {missing[0]}: it is not of version {__version__}; {REINSTALL}" if missing else None


reason = _load()
available = reason is None
if reason is not None and os.environ.get("FOCAL_EXT_NATIVE") != "0":
    warnings.warn(f"focal_ext falls back to plain PyTorch, right but slow: {reason}", RuntimeWarning, stacklevel=3)


def _facts() -> dict[str, Any]:
    return {"cuda": _fact("cuda") or None, "archs": (_fact("archs") or "").split(), "cpu_level": _fact("cpu_level")}


def build_info() -> dict[str, Any]:
    """What is in use: version, backend ("native" or "reference"), reason (why not native, else None), cuda (the toolkit's version
    or None), archs, cpu_level (the instruction set in use) and torch."""
    facts = _facts() if available else {"cuda": None, "archs": [], "cpu_level": None}
    return {
        "version": __version__,
        "backend": "native" if available else "reference",
        "reason": reason,
        **facts,
        "torch": torch.__version__,
    }


@functools.cache
def _cuda_usable() -> bool:
    """Whether the library has CUDA kernels that this driver can run; warns once when the driver is too old for them."""
    built = _facts()["cuda"]
    if not built:
        warnings.warn(
            "focal_ext was built without CUDA kernels; tensors on cuda take the plain PyTorch reference. Put nvcc on the PATH and reinstall",
            RuntimeWarning,
            stacklevel=5,
        )
        return False
    driver = cuda_driver_version()
    if driver // 1000 < int(built.split(".")[0]):
        warnings.warn(
            f"focal_ext was built with CUDA {built}, the driver supports CUDA {driver // 1000}.{driver % 1000 // 10}; tensors on cuda take"
            " the plain PyTorch reference. Update the driver, or rebuild with an older nvcc",
            RuntimeWarning,
            stacklevel=5,
        )
        return False
    return True


def runs_on(device: torch.device) -> bool:
    """Whether there are fused kernels for tensors of this device."""
    return available and (device.type == "cpu" or (device.type == "cuda" and _cuda_usable()))


if available:
    from . import _graphs  # noqa: F401  registers what compiled graphs need to know of the ops

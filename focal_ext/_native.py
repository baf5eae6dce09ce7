# Owns: the native library: finding it, loading it, saying what is in use, and the only door to its ops.
# Must not know: arguments, reductions, autograd rules.
from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from pathlib import Path
from typing import Any

import torch

from . import _cuda_devices as cuda_devices
from ._torch_private import constant_to_compile, cuda_driver_version
from ._version import __version__

LIBRARY = Path(__file__).with_name("libfocal_ext.so")
REINSTALL = (
    "install torch >= 2.10 and a C++ compiler first, then build again from the sources: "
    "pip install --no-cache-dir --force-reinstall --no-deps ."
)
OLDEST_TORCH = (2, 10)  # for the library; the package works through the reference with torch >= 2.6

ops = torch.ops.focal_ext  # resolves names lazily: empty until the library is loaded
# both derivatives of a convolution without an autograd graph
convolution_backward = torch.ops.aten.convolution_backward
OPS = ("loss", "loss_and_gradient", "loss_map", "gradient", "gradient_", "scale_", "first_bad_id")
PYRAMID_OPS = ("pyramid_loss", "pyramid_loss_and_gradient", "pyramid_loss_map", "pyramid_gradient", "pyramid_gradient_")
IN_PLACE_OPS = ("gradient_", "scale_", "pyramid_gradient_")


def _fact(name: str) -> str | None:
    """What the library says of itself (csrc/build_facts.cpp); None if it does not know the name. Loads nothing
    twice."""
    function = getattr(ctypes.CDLL(str(LIBRARY)), "focal_ext_fact", None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    found: bytes | None = function(name.encode())
    return None if found is None else found.decode()


# What the environment may say, "" being nothing.
SWITCHES = {
    "FOCAL_EXT_NATIVE": ("0", "1"),  # 0: the reference; 1: a build without kernels fails (setup.py)
    # the highest instruction set to use (csrc/cpu/level.h)
    "FOCAL_EXT_CPU_LEVEL": (
        "baseline",
        "x86-64-v3",
        "x86-64-v4",
    ),
}


def _check_environment() -> None:
    for name, known in SWITCHES.items():
        value = os.environ.get(name, "")
        if value and value not in known:
            raise ValueError(f"{name}: must be one of {', '.join(known)}, or not set, got {value!r}")


def _other_copy() -> str | None:
    """The library of another copy of this package that the process has loaded. torch allows one definition of an op,
    and ends the process at a second."""
    if not hasattr(ops, OPS[0]):
        return None
    loaded = {str(path) for path in torch.ops.loaded_libraries if Path(path).name == LIBRARY.name}
    try:  # the libraries that were not loaded through torch, or that an installation has replaced since
        maps = Path("/proc/self/maps").read_text(errors="replace").splitlines()
        loaded |= {
            fields[5]
            for fields in (line.split(maxsplit=5) for line in maps)
            if len(fields) == 6 and LIBRARY.name in fields[5]
        }
    except OSError:
        pass
    if any(os.path.exists(path) and os.path.samefile(path, LIBRARY) for path in loaded):
        return None
    return min(loaded, default="a library of unknown path")


def _hidden_installation() -> Path | None:
    """The installed package that these sources stand before: Python looks into the folder it is started in first."""
    if not (LIBRARY.parent.parent / "CMakeLists.txt").exists():
        return None
    installed = (Path(folder, LIBRARY.parent.name, LIBRARY.name) for folder in sys.path)
    return next((library.parent for library in installed if library.exists()), None)


def _load() -> str | None:
    """Loads the library; returns why not, with the way out, or None."""
    _check_environment()
    if os.environ.get("FOCAL_EXT_NATIVE") == "0":
        return "FOCAL_EXT_NATIVE=0 in the environment asks for the reference"
    # 2.10.0a0 of a vendor's build is new enough
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < OLDEST_TORCH:
        return (
            f"the fused kernels need torch >= 2.10, this is torch {torch.__version__}; "
            f"{'update torch' if LIBRARY.exists() else REINSTALL}"
        )
    if not LIBRARY.exists():
        hidden = _hidden_installation()
        if hidden is not None:
            return (
                f"Python found the sources in {LIBRARY.parent}, which have no {LIBRARY.name}, before the package "
                f"that is installed in {hidden}; start Python in another folder, or install the "
                "sources with: pip install -e ."
            )
        return (
            f"this installation has no {LIBRARY.name}: it was built without a C++ compiler, not on Linux, or with "
            f"FOCAL_EXT_NATIVE=0; {REINSTALL}"
        )
    other = _other_copy()
    if other is not None:
        raise ImportError(
            f"focal_ext: this process has loaded {other} and cannot load {LIBRARY} too; keep one copy of the package "
            "on sys.path, and restart Python"
            " after an installation. FOCAL_EXT_NATIVE=0 gives the plain PyTorch reference without loading anything"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        # torch hides the linker's words, and the linker says this of a library for another processor
        cause = str(error.__cause__ or error)
        if "No such file" in cause:
            cause = (
                f"it is not for this processor ({platform.machine()}), or another library that it needs is "
                f"missing: {cause}"
            )
        return (
            f"{LIBRARY.name} does not load into torch {torch.__version__} (needs torch >= 2.10): {cause}; {REINSTALL}"
        )
    version = _fact("version")
    if version != __version__:
        return f"{LIBRARY.name} is of version {version or 'unknown'}, the package of {__version__}; {REINSTALL}"
    missing = [name for name in OPS + PYRAMID_OPS if not hasattr(ops, name)]
    return (
        f"{LIBRARY.name} has no op {missing[0]}: it is not of version {__version__}; {REINSTALL}" if missing else None
    )


reason = _load()
available = reason is None
if available:  # the package may be imported anew, the ops stay; what was registered through the object goes with it
    registrations: torch.library.Library = getattr(ops, "registrations", None) or torch.library.Library(
        "focal_ext", "FRAGMENT"
    )
    setattr(ops, "registrations", registrations)  # noqa: B010  a namespace of ops declares no attributes
if reason is not None and os.environ.get("FOCAL_EXT_NATIVE") != "0":
    warnings.warn(f"focal_ext falls back to plain PyTorch, right but slow: {reason}", RuntimeWarning, stacklevel=3)


def _facts() -> dict[str, Any]:
    cuda, archs, reason_no_cuda = map(_fact, ("cuda", "archs", "reason_no_cuda"))
    return {
        "cuda": cuda or None,
        "archs": (archs or "").split(),
        "reason_no_cuda": None if cuda else reason_no_cuda or None,
        "cpu_level": _fact("cpu_level"),
    }


def build_info() -> dict[str, Any]:
    """What is in use, as a dict.

    Returns:
        version: of the package.
        backend: "native" or "reference".
        reason: why it is not native, else None.
        cuda: the version of the toolkit that the kernels were built with, or None.
        archs: their architectures.
        reason_no_cuda: why the build has no CUDA kernels, else None.
        cpu_level: the instruction set in use.
        torch: its version.
    """
    facts = _facts() if available else {"cuda": None, "archs": [], "reason_no_cuda": reason, "cpu_level": None}
    return {
        "version": __version__,
        "backend": "native" if available else "reference",
        "reason": reason,
        **facts,
        "torch": torch.__version__,
    }


_on_cuda: dict[int, bool] = {}  # by the device's index
_said: set[str] = set()


@constant_to_compile
def _runs_on_cuda(index: int | None) -> bool:
    """Whether the library has CUDA kernels that this driver and device can run; warns once and says why, if not.

    Never initialises CUDA, which a process that forks later must not have done: as long as it is not initialised,
    tensors on cuda are fake ones.
    """
    if index in _on_cuda:
        return _on_cuda[index]
    initialised = torch.cuda.is_initialized()
    why_not = _why_not_on_cuda(torch.cuda.get_device_capability(index) if initialised else None)
    if why_not is not None and why_not not in _said:
        words = f"{why_not}. Tensors on cuda take the plain PyTorch reference, right but slow"
        warnings.warn(words, RuntimeWarning, stacklevel=_callers_level())
        _said.add(why_not)
    if initialised and index is not None:
        _on_cuda[index] = why_not is None
    return why_not is None


def _callers_level() -> int:
    """The stacklevel of the line that called the package, from within the function that warns."""
    inside, frame, level = (str(LIBRARY.parent), str(Path(torch.__file__).parent)), sys._getframe(2), 2
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    return level


def _why_not_on_cuda(capability: tuple[int, int] | None) -> str | None:
    if torch.version.hip:
        return "focal_ext has kernels for NVIDIA GPUs only, and this torch is built for ROCm"
    return cuda_devices.why_not(_facts(), cuda_driver_version(), capability)


def runs_on(device: torch.device) -> bool:
    """Whether there are fused kernels for tensors of this device."""
    return available and (device.type == "cpu" or (device.type == "cuda" and _runs_on_cuda(device.index)))

# Owns: the native library: finding it, loading it, saying what is in use, and the only door to its ops.
# Must not know: arguments, reductions, autograd rules.
from __future__ import annotations

import functools
import importlib
import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ._version import __version__

LIBRARY = Path(__file__).with_name("libfocal_ext.so")
REINSTALL = (
    "install torch >= 2.10 and a C++ compiler first, then build again from the sources: "
    "pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps ."
)

ops = torch.ops.focal_ext  # resolves names lazily: empty until the library is loaded
OPS = ("loss", "loss_and_gradient", "loss_map", "gradient", "gradient_", "scale_", "first_bad_id")


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
    missing = [name for name in OPS if not hasattr(ops, name)]
    return f"{LIBRARY.name} has no op {missing[0]}: it is not of version {__version__}; {REINSTALL}" if missing else None


reason = _load()
available = reason is None
if reason is not None and os.environ.get("FOCAL_EXT_NATIVE") != "0":
    warnings.warn(f"focal_ext falls back to plain PyTorch, right but slow: {reason}", RuntimeWarning, stacklevel=3)


def _facts() -> dict[str, Any]:
    try:
        module = importlib.import_module("focal_ext._C")
    except ImportError:
        return {"cuda": None, "archs": [], "cpu_level": None}
    return {"cuda": module.cuda or None, "archs": module.archs.split(), "cpu_level": module.cpu_level()}


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
    driver = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined]
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
    """Whether the fused kernels run on tensors of this device."""
    if not available:
        return False
    return device.type == "cpu" or (device.type == "cuda" and _cuda_usable())


# The schemas' common head: inputs, targets, weight, alpha, normalizer, gamma, alpha_positive, alpha_negative, ignore_index,
# divisor, divisor_value. A fake kernel tells the compiler shapes and dtypes only.


def _accumulation(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype is torch.float64 else torch.float32


def _like_logits(inputs: Tensor) -> Tensor:
    return torch.empty_like(inputs, memory_format=torch.contiguous_format)


def _register() -> None:
    register_fake, register_autograd = torch.library.register_fake, torch.library.register_autograd

    @register_fake("focal_ext::loss")
    def _(inputs: Tensor, *args: Any) -> Tensor:
        return inputs.new_empty((), dtype=_accumulation(inputs))

    @register_fake("focal_ext::loss_and_gradient")
    def _(inputs: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        return inputs.new_empty((), dtype=_accumulation(inputs)), _like_logits(inputs)

    @register_fake("focal_ext::loss_map")
    def _(inputs: Tensor, *args: Any) -> Tensor:
        return _like_logits(inputs)

    @register_fake("focal_ext::gradient")
    def _(inputs: Tensor, *args: Any) -> Tensor:
        return _like_logits(inputs)

    @register_fake("focal_ext::gradient_")
    def _(inputs: Tensor, *args: Any) -> None:
        return None

    @register_fake("focal_ext::scale_")
    def _(gradient: Tensor, factor: Tensor) -> None:
        return None

    # Autograd formulas for compiled graphs; eager calls go through focal_ext._autograd, which can see whether the graph is kept.

    def save_gradient(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    def refuse_create_graph() -> None:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "focal_ext: a compiled or exported loss is once differentiable; for create_graph=True call it outside the compiled"
                " function, or use focal_ext.reference in it"
            )

    def scale_gradient(ctx: Any, grad_loss: Tensor, _: Any) -> tuple[Any, ...]:
        refuse_create_graph()
        return (ctx.saved_tensors[0] * grad_loss, *[None] * 10)

    def save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.scalars = inputs[5:]

    def recompute_gradient(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        refuse_create_graph()
        return (ops.gradient(*ctx.saved_tensors, *ctx.scalars, grad_output.contiguous()), *[None] * 10)

    register_autograd("focal_ext::loss_and_gradient", scale_gradient, setup_context=save_gradient)
    register_autograd("focal_ext::loss", recompute_gradient, setup_context=save_inputs)
    register_autograd("focal_ext::loss_map", recompute_gradient, setup_context=save_inputs)


if available:
    _register()

# Owns: what a report says of the machine and of what is installed on it, and what to do where something is missing.
# Must not know: losses, how kernels are checked.
from __future__ import annotations

import os
import platform
import textwrap
import warnings
from pathlib import Path

import torch

from . import _native

CGROUP = Path("/sys/fs/cgroup")
NVIDIA = Path("/proc/driver/nvidia/version")
ENVIRONMENT = (
    "FOCAL_EXT_",
    "OMP_",
    "MKL_NUM",
    "GLIBC_TUNABLES",
    "LD_PRELOAD",
    "CUDA_VISIBLE",
    "PYTORCH_",
    "TORCH_ALLOW",
)


def _first(file: Path, prefix: str) -> str:
    """The rest of the file's first line that starts so; empty where there is none."""
    try:
        return next(
            (line[len(prefix) :].lstrip(" \t:") for line in file.read_text().splitlines() if line.startswith(prefix)),
            "",
        )
    except OSError:
        return ""


def devices() -> list[torch.device]:
    """The CPU and every GPU that torch can use."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(count))]


def free_bytes(device: torch.device) -> int:
    """Memory for a call: of the GPU, of the machine, or what a container leaves of it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [int((_first(Path("/proc/meminfo"), "MemAvailable") or "8000000").split()[0]) * 1024]
    limit, used = _first(CGROUP / "memory.max", ""), _first(CGROUP / "memory.current", "")
    if limit.isdigit() and used.isdigit():
        free.append(int(limit) - int(used))
    return min(free)


def facts() -> dict[str, str]:
    """The machine and the software, a line each."""
    torch_cuda = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    gpus = [torch.cuda.get_device_properties(device) for device in devices() if device.type == "cuda"]
    processor = _first(Path("/proc/cpuinfo"), "model name") or platform.processor() or platform.machine()
    return {
        "system": f"{platform.platform()}, Python {platform.python_version()}",
        "processor": f"{processor}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads of torch",
        "torch": f"{torch.__version__}, {torch_cuda}",
        "GPU": "; ".join(
            f"{gpu.name}, capability {gpu.major}.{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus
        )
        or "none that torch can use",
        "driver": _first(NVIDIA, "NVRM version") or "no NVIDIA driver",
        "environment": " ".join(
            f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(ENVIRONMENT)
        )
        or "nothing set",
        "installed in": str(Path(__file__).parent),
    }


def build() -> dict[str, str]:
    """build_info() in words."""
    info = _native.build_info()
    native = info["backend"] == "native"
    cuda = (
        f"CUDA {info['cuda']}, for {' '.join(info['archs'])}"
        if info["cuda"]
        else f"none: {info.get('reason_no_cuda') or 'not built'}"
    )
    return {
        "version": info["version"],
        "CPU kernels": f"fused, {info['cpu_level']}" if native else "none: plain PyTorch stands in, right but slow",
        "CUDA kernels": cuda if native else "none",
    }


def advice() -> list[str]:
    """What is missing and what to do about it, a paragraph each; empty where this machine is used to the full."""
    if not _native.available:
        return [f"No fused kernels: {_native.reason}."]
    found = []
    with warnings.catch_warnings(record=True) as caught:  # the sentences that a first call on the GPU would warn with
        warnings.simplefilter("always")
        for device in devices():
            _native.runs_on(device)
    found += [str(warning.message) for warning in caught]
    if NVIDIA.exists() and torch.version.cuda and not torch.cuda.is_available():
        found.append(
            "torch is built for CUDA but finds no GPU that it can use:"
            " look at nvidia-smi, CUDA_VISIBLE_DEVICES and the driver's version."
        )
    if NVIDIA.exists() and not torch.version.cuda:
        found.append(
            "There is an NVIDIA driver, but this torch is built without CUDA:"
            " install a CUDA build of torch, then install focal_ext again."
        )
    return found


def lines(entries: dict[str, str], width: int = 110) -> str:
    """One entry a line, the names in a column."""
    left = max(map(len, entries)) + 2
    return "\n".join(
        textwrap.fill(text, width + left, initial_indent=f"  {name:<{left}}", subsequent_indent=" " * (left + 2))
        for name, text in entries.items()
    )

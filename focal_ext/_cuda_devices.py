# Owns: the rules by which compiled images run on CUDA devices, and the sentence for a device that none runs on.
# Must not know: torch, the library: it is given what they say.
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

OLDEST_NVCC = "12.4"
# These share no binary image with other chips of their major version (CUDA C++ programming guide, binary
# compatibility).
TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1)}


def runs(arch: str, capability: tuple[int, int], with_ptx: bool) -> bool:
    """Whether an image, "80", "90a" or "100+PTX", runs on devices of a compute capability.

    A binary runs within its major version from its own minor version on; PTX is compiled for every later device. With
    the suffix "a" both are for the one architecture, with "f" for its major version.
    """
    number = arch.removesuffix("+PTX")
    suffix = number.lstrip("0123456789")
    digits = number.removesuffix(suffix)
    own = int(digits[:-1]), int(digits[-1])
    if own == capability:
        return True
    if suffix == "a" or own > capability:
        return False
    if own[0] == capability[0] and not TEGRA & {own, capability}:
        return True
    return with_ptx and arch.endswith("+PTX") and (suffix == "" or own[0] == capability[0])


def why_not(facts: Mapping[str, Any], driver: int, capability: tuple[int, int] | None) -> str | None:
    """Why the CUDA kernels of a build do not run, with the way out; None if they do.

    driver: as CUDA numbers it, 12040 for 12.4; 0 where there is none, so that tensors on cuda can only be fake.
    capability: None where no device is in use yet.
    """
    built, archs = facts["cuda"], facts["archs"]
    if not built:
        return (
            f"focal_ext was built without CUDA kernels ({facts['reason_no_cuda'] or 'the build does not say why'}). "
            "Build it"
            f" again with nvcc {OLDEST_NVCC} or later on the PATH; with FOCAL_EXT_CUDA=ON the build says what is wrong"
        )
    major, minor = map(int, built.split("."))
    supported = f"{driver // 1000}.{driver % 1000 // 10}"
    if 0 < driver < 1000 * major:
        return (
            f"focal_ext was built with CUDA {built}, the driver supports CUDA {supported}. Update the driver, or "
            "build focal_ext"
            f" again with an older nvcc, {OLDEST_NVCC} or later"
        )
    jit = driver >= 1000 * major + 10 * minor  # a driver compiles the PTX of its own toolkit and of earlier ones
    if capability is None or any(runs(arch, capability, jit) for arch in archs):
        return None
    name = "{}.{}".format(*capability)
    update = ", or update the driver, which cannot compile its PTX" if _any_with_ptx(archs, capability) else ""
    return (
        f"focal_ext was built for the CUDA architectures {' '.join(archs)}, none of which runs on this device (compute"
        f" capability {name}, driver of CUDA {supported}). Build it again with TORCH_CUDA_ARCH_LIST={name}{update}"
    )


def _any_with_ptx(archs: Sequence[str], capability: tuple[int, int]) -> bool:
    return any(runs(arch, capability, with_ptx=True) for arch in archs)

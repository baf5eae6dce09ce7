# Owns: compiling the CUDA kernels for the device made of a CPU, in several flavours, into build/cuda_host.
# Must not know: what the kernels compute.
from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from .additional_loss import SOURCE as ADDITIONAL, with_additional_loss
from .defects import with_defects

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
NAME = "focal_ext_cuda_host"
SANITIZED = ("-g1", "-fno-omit-frame-pointer")
INSTRUMENTED = {
    "plain": (),
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", *SANITIZED),
    "thread": ("-fsanitize=thread", *SANITIZED),
}
# Packed: two numbers per instruction, as on sm_100.
FLAVOURS = {
    **INSTRUMENTED,
    **{f"packed_{name}": ("-DFOCAL_EXT_PACKED=1", *flags) for name, flags in INSTRUMENTED.items()},
}
# The library that a sanitized module needs in its process before all others.
PRELOADED = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def cuda_headers() -> Path | None:
    """The folder of cuda_runtime.h: of the toolkit, or of the packages that PyPI has of it."""
    nvcc = shutil.which("nvcc")
    toolkits = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    packages = sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/*/include"))
    folders = [*(Path(toolkit) / "include" for toolkit in toolkits if toolkit), *packages]
    return next(
        (
            folder
            for folder in folders
            if all((folder / f"cuda_{name}.h").exists() for name in ("runtime", "fp16", "bf16"))
        ),
        None,
    )


def why_impossible() -> str | None:
    if compiler() is None:
        return "no g++"
    if importlib.util.find_spec("pybind11") is None:
        return "no pybind11"
    return None if cuda_headers() else "no cuda_runtime.h: neither a CUDA toolkit nor NVIDIA's headers from PyPI"


def commands(flavour: str, csrc: Path, folder: Path) -> list[list[str]]:
    """One per source file. The device itself is compiled without sanitizers: it is no part of the program under
    test."""
    import pybind11  # optional: see why_impossible

    python = sysconfig.get_paths()
    # unroll is nvcc's
    every = [
        str(compiler()),
        "-std=c++20",
        "-O1",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-unknown-pragmas",
        "-c",
    ]
    kernels = [*FLAVOURS[flavour], "-isystem", str(cuda_headers()), "-include", str(HERE / "cuda_host.h"), "-x", "c++"]
    module = [*FLAVOURS[flavour], "-I", str(csrc), "-isystem", pybind11.get_include(), "-isystem", python["include"]]
    own = {HERE / "device.cpp": [], HERE / "fiber.cpp": [], HERE / "module.cpp": module}
    sources = {**own, **dict.fromkeys(sorted((csrc / "cuda").glob("*.cu")), kernels)}
    return [[*every, *flags, str(source), "-o", str(folder / f"{source.stem}.o")] for source, flags in sources.items()]


def digest(flavour: str) -> str:
    files = [
        path
        for folder in (ROOT / "csrc", HERE)
        for path in sorted(folder.rglob("*.*"))
        if path.suffix in (".h", ".cuh", ".cu", ".cpp") or path.name in ("defects.py", "additional_loss.py")
    ]
    files.append(ADDITIONAL)
    text = [repr(commands(flavour, ROOT / "csrc", Path())).encode(), *(path.read_bytes() for path in files)]
    return hashlib.sha256(b"\0".join(text)).hexdigest()[:16]


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode or done.stderr:  # a warning is an error
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")


def build(flavour: str) -> Path:
    """The module's file; compiled when a source or an option changed, by the first of the processes that want it."""
    home = ROOT / "build/cuda_host" / flavour
    library = home / f"{digest(flavour)}.so"
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):
        return library if library.exists() else compiled(flavour, library)


def compiled(flavour: str, library: Path) -> Path:
    home = library.parent
    with tempfile.TemporaryDirectory(dir=home) as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        with_defects(ROOT / "csrc", Path(folder) / "csrc")
        with_additional_loss(Path(folder) / "csrc")
        list(pool.map(run, commands(flavour, Path(folder) / "csrc", Path(folder))))
        finished = Path(folder) / library.name
        run([str(compiler()), "-shared", *FLAVOURS[flavour], *map(str, Path(folder).glob("*.o")), "-o", str(finished)])
        for old in home.glob("*.so"):
            old.unlink()
        finished.rename(library)
    return library


def load(flavour: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(NAME, build(flavour))
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    return module


def environment(flavour: str) -> dict[str, str]:
    """For a Python process that loads the flavour: the sanitizer's runtime has to come first."""
    names = PRELOADED.get(flavour.removeprefix("packed_"), ())
    found = [
        subprocess.run(
            [str(compiler()), f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in names
    ]
    options = {
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "halt_on_error=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    return {
        **os.environ,
        **options,
        "LD_PRELOAD": " ".join(found),
        "CUDA_HOST_FLAVOUR": flavour,
        "OMP_NUM_THREADS": "1",
    }


if __name__ == "__main__":
    for chosen in sys.argv[1:] or FLAVOURS:
        print(build(chosen))

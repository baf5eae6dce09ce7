# Owns: the decision between a native and a pure-Python build: environment variables, the compiler.
# Must not know: torch's place (torch_search.py), CMake (run_cmake.py), setuptools.
"""All switches are read from the environment:

FOCAL_EXT_NATIVE      0: pure-Python install; 1: kernels, or an error; unset: pure only where there is no compiler
FOCAL_EXT_CUDA        AUTO (nvcc found -> CUDA kernels), ON or OFF
TORCH_CUDA_ARCH_LIST  architectures, as for torch extensions: "8.0;9.0+PTX", "Hopper", "native"
FOCAL_EXT_TORCH_ROOT  folder of the torch package to build against
MAX_JOBS              parallel compile jobs
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Mapping

PURE = "FOCAL_EXT_NATIVE=0 installs the pure Python package, right but slow"
NATIVE = {"0": "pure Python", "1": "kernels, or an error"}
CUDA = {"AUTO": "CUDA kernels where nvcc is found", "ON": "CUDA kernels, or an error", "OFF": "CPU kernels alone"}


def stop(message: str) -> SystemExit:
    return SystemExit(f"\nfocal_ext: {message}\n")


def switch(name: str, values: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """The value of a variable, empty if it is unset; anything but the right values is an error."""
    value = environ.get(name, "")
    if value and value not in values:
        raise stop(
            f"{name}: at build time it must be {', '.join(f'{v} ({what})' for v, what in values.items())} or unset,"
            f" got {value!r}"
        )
    return value


def why_pure(environ: Mapping[str, str]) -> str | None:
    """Why this build is to have no kernels, or None. Raises where the environment asks for what cannot be."""
    native, cuda, jobs = (
        switch("FOCAL_EXT_NATIVE", NATIVE, environ),
        switch("FOCAL_EXT_CUDA", CUDA, environ),
        environ.get("MAX_JOBS", ""),
    )
    if not re.fullmatch(r"[1-9]\d*|", jobs):
        raise stop(f"MAX_JOBS: must be a number of compile jobs, 1 or more, got {jobs!r}")
    if native == "0" and cuda == "ON":
        raise stop("FOCAL_EXT_NATIVE=0 asks for no kernels and FOCAL_EXT_CUDA=ON for CUDA kernels; unset one of them")
    reason = "FOCAL_EXT_NATIVE=0" if native == "0" else no_compiler(environ)
    wanted = "FOCAL_EXT_NATIVE=1" if native == "1" else "FOCAL_EXT_CUDA=ON" if cuda == "ON" else None
    if reason and wanted:
        raise stop(f"{wanted}, but {reason}")
    return reason


def no_compiler(environ: Mapping[str, str]) -> str | None:
    if sys.platform != "linux":
        return f"the kernels are built on Linux only, this is {sys.platform}"
    named = environ.get("CXX", "").split()[:1]
    names = named or ["c++", "g++", "clang++"]
    if any(shutil.which(name, path=environ.get("PATH")) for name in names):
        return None
    if named:
        raise stop(f"CXX={environ['CXX']}: there is no {named[0]}; name a C++20 compiler, or unset CXX. {PURE}")
    return f"no C++ compiler was found (looked for {', '.join(names)})"

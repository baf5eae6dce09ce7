# Owns: running CMake and Ninja for libfocal_ext.so, anew where a kept cache would not notice a change.
# Must not know: compiler flags (CMakeLists.txt), setuptools.
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from .switches import PURE, stop
from .torch_search import Search, search, torch_to_build_against

SOURCE = Path(__file__).resolve().parents[3]
BUILD = SOURCE / "build/cmake"  # kept: the next build compiles what changed
OLDEST_CMAKE = (3, 25)
# CMake reads these when it configures for the first time.
KEPT = (
    "CXX",
    "CXXFLAGS",
    "LDFLAGS",
    "CUDACXX",
    "CUDAFLAGS",
    "CUDAHOSTCXX",
    "NVCC_CCBIN",
    "CUDA_HOME",
    "CUDA_PATH",
)


def build_library(prefix: Path, everything: bool) -> None:
    """Installs the package's library under prefix, and what C++ programs need if everything is wanted."""
    found = search(os.environ)
    torch = torch_to_build_against(found)
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    env = {**os.environ, "PATH": path}
    cmake, ninja = tools(path)
    note, asked = BUILD / "asked_for.txt", asked_for(path, found, os.environ)
    fresh = [] if note.exists() and note.read_text() == asked else ["--fresh"]
    BUILD.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    where = [
        "-G",
        "Ninja",
        "-S",
        str(SOURCE),
        "-B",
        str(BUILD),
        f"-DFOCAL_EXT_TORCH_ROOT={torch}",
        f"-DCMAKE_INSTALL_PREFIX={prefix}",
    ]
    asked_cuda = os.environ.get("FOCAL_EXT_CUDA") or "AUTO"
    # csrc/configure/architectures.cmake reads the list; it is empty for the default, whatever an earlier build was
    # told.
    what = [f"-DFOCAL_EXT_CUDA={asked_cuda}", f"-DFOCAL_EXT_CUDA_ARCHS={os.environ.get('TORCH_CUDA_ARCH_LIST', '')}"]
    # ninja is given anew each time: the kept cache may name one of an isolated environment that is gone.
    run("configuring with CMake", [cmake, *fresh, *where, *what, f"-DCMAKE_MAKE_PROGRAM={ninja}"], env)
    note.write_text(asked)
    jobs = os.environ.get("MAX_JOBS")
    run("compiling the kernels", [cmake, "--build", str(BUILD), *(["-j", jobs] if jobs else [])], env)
    run(
        "copying the library", [cmake, "--install", str(BUILD), *([] if everything else ["--component", "python"])], env
    )


def tools(path: str) -> tuple[str, str]:
    """cmake and ninja, which may be Python packages beside the interpreter."""
    found = {name: shutil.which(name, path=path) for name in ("cmake", "ninja")}
    missing = [name for name, place in found.items() if place is None]
    wanted = ".".join(map(str, OLDEST_CMAKE))
    way_out = f'pip install "cmake>={wanted}" ninja, or build without --no-build-isolation. {PURE}'
    if missing:
        raise stop(f"no {' and no '.join(missing)} on the PATH or beside {sys.executable}; {way_out}")
    said = subprocess.run(
        [str(found["cmake"]), "--version"], capture_output=True, text=True, env={**os.environ, "PATH": path}
    )
    version = re.search(r"version (\d+)\.(\d+)", said.stdout)
    if not version:
        raise stop(f"{found['cmake']} does not run: {said.stderr.strip()[-300:]}; {way_out}")
    if (int(version[1]), int(version[2])) < OLDEST_CMAKE:
        raise stop(f"{found['cmake']} is CMake {version[1]}.{version[2]}, {wanted} is needed; {way_out}")
    return str(found["cmake"]), str(found["ninja"])


def asked_for(path: str, found: Search, environ: Mapping[str, str]) -> str:
    """What a kept CMake cache would not notice: another compiler, flag or torch, an update, a moved source tree."""
    programs = {"C++": environ.get("CXX") or "c++", "nvcc": environ.get("CUDACXX") or "nvcc"}
    lines = [f"source {SOURCE}", f"torch {found.torch} {found.version}"]
    # Every word, since a command may begin with a launcher: CXX="ccache g++".
    lines += [
        f"{what} {identity(shutil.which(word, path=path))}"
        for what, words in programs.items()
        for word in words.split()
    ]
    lines += [f"{name}={value}" for name, value in sorted(environ.items()) if name in KEPT or name.startswith("CMAKE_")]
    return "\n".join(lines) + "\n"


def identity(program: str | None) -> str:
    """Another one for another program under the same name, and for an updated one."""
    real = os.path.realpath(program) if program else ""
    return f"{program} -> {real}, {os.stat(real).st_mtime_ns}" if program else "none"


def run(what: str, command: list[str], env: Mapping[str, str]) -> None:
    sys.stdout.flush()
    if subprocess.run(command, env=env).returncode:
        raise stop(f"{what} failed, its own words stand above. {PURE}")

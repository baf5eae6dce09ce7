# Owns: finding torch on disk and running CMake; decides between a native and a pure-Python build.
# Must not know: compiler flags (CMakeLists.txt). Never imports torch: that takes seconds, and isolated builds do not see it.
"""Switches, all read from the environment:

FOCAL_EXT_NATIVE      0: pure-Python install, 1: fail when the native library cannot be built; unset: build it when possible
FOCAL_EXT_CUDA        AUTO (nvcc found -> CUDA kernels), ON or OFF
TORCH_CUDA_ARCH_LIST  architectures, as for torch extensions: "8.0;9.0+PTX" or "80;90+PTX"
FOCAL_EXT_TORCH_ROOT  folder of the torch package to build against
MAX_JOBS              parallel compile jobs
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent


def find_torch() -> Path | None:
    """The folder of a torch >= 2.10: named, importable, or beside the interpreter (pip's isolation hides it)."""
    named = os.environ.get("FOCAL_EXT_TORCH_ROOT")
    spec = find_spec("torch")
    places = [Path(named)] if named else [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    if not named:
        places += [Path(sysconfig.get_path(key)) / "torch" for key in ("platlib", "purelib")]
        places += [Path(p) / "torch" for p in [*sys.path, site.getusersitepackages()] if p.endswith("-packages")]
    return next(filter(is_new_enough, places), None)


def is_new_enough(torch: Path) -> bool:
    version = torch / "version.py"
    found = re.search(r"__version__ = '(\d+)\.(\d+)", version.read_text()) if version.exists() else None
    return bool(found and (int(found[1]), int(found[2])) >= (2, 10) and (torch / "include/torch/csrc/stable/library.h").exists())


def why_not_native() -> str | None:
    if os.environ.get("FOCAL_EXT_NATIVE") == "0":
        return "FOCAL_EXT_NATIVE=0"
    compiler = os.environ.get("CXX", "c++").split()[0]
    if not (shutil.which(compiler) or shutil.which("g++") or shutil.which("clang++")):
        return f"no C++ compiler found (looked for {compiler}, g++ and clang++)"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "no Python headers found; install python3-dev or your system's package of that kind"
    if find_torch() is None:
        return "no torch >= 2.10 found beside this interpreter; install torch first, or set FOCAL_EXT_TORCH_ROOT"
    return None


def cuda_archs() -> list[str]:
    listed = os.environ.get("TORCH_CUDA_ARCH_LIST")
    if not listed:
        return ["-UFOCAL_EXT_CUDA_ARCHS"]  # back to the default, whatever an earlier build was told
    return [f"-DFOCAL_EXT_CUDA_ARCHS={';'.join(re.split('[ ;,]+', listed.strip())).replace('.', '')}"]


class CMakeBuild(build_ext):
    """Builds libfocal_ext.so with CMake and Ninja, into the package or into the build folder."""

    def run(self) -> None:
        build = HERE / "build" / f"cmake-{sys.implementation.cache_tag}"  # kept: the next build compiles what changed
        build.mkdir(parents=True, exist_ok=True)
        # cmake and ninja may be Python packages beside the interpreter, which pip does not put on the PATH.
        path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
        env = {**os.environ, "PATH": path}
        prefix = HERE if self.inplace else Path(self.build_lib).resolve()
        command = ["-G", "Ninja", "-S", str(HERE), "-B", str(build), f"-DFOCAL_EXT_TORCH_ROOT={find_torch()}"]
        command += [f"-DCMAKE_INSTALL_PREFIX={prefix}", f"-DFOCAL_EXT_CUDA={os.environ.get('FOCAL_EXT_CUDA', 'AUTO')}", *cuda_archs()]
        # Given anew each time: the kept cache may name a ninja of an isolated environment that is gone.
        command += [f"-DCMAKE_MAKE_PROGRAM={shutil.which('ninja', path=path)}"]
        jobs = os.environ.get("MAX_JOBS")
        cmake = shutil.which("cmake", path=path)
        if cmake is None:
            raise SystemExit("focal_ext: cmake not found; pip install cmake ninja, or build without --no-build-isolation")
        subprocess.run([cmake, *command], check=True, env=env)
        subprocess.run([cmake, "--build", str(build), *(["-j", jobs] if jobs else [])], check=True, env=env)
        # An editable installation has no use for headers beside its sources.
        subprocess.run([cmake, "--install", str(build), *(["--component", "python"] if self.inplace else [])], check=True, env=env)

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else [str(p) for p in (Path(self.build_lib) / "focal_ext").glob("*.so")]


reason = why_not_native()
if reason and os.environ.get("FOCAL_EXT_NATIVE") == "1":
    raise SystemExit(f"focal_ext: FOCAL_EXT_NATIVE=1, but {reason}")
if reason:
    print(f"focal_ext: building without native kernels: {reason}", file=sys.stderr)
native = {} if reason else {"ext_modules": [Extension("focal_ext.libfocal_ext", [])], "cmdclass": {"build_ext": CMakeBuild}}
setup(**native)

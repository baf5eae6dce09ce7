# Owns: the commands of setuptools that a native build changes.
# Must not know: when a build is native (csrc/configure/native_build/switches.py), torch (torch_search.py), compilers
# (CMakeLists.txt).
from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import setuptools

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "csrc/configure"))
from native_build.switches import stop, why_pure  # noqa: E402

VERSION = tuple(map(int, setuptools.__version__.split(".")[:2]))
WAY_OUT = "pip install 'setuptools>=70.1', or build without --no-build-isolation"
if VERSION < (64,):
    raise stop(f"setuptools {setuptools.__version__} of {sys.executable} is too old, 64 is needed; {WAY_OUT}")

from setuptools.command.build import build  # noqa: E402
from setuptools.command.build_ext import build_ext  # noqa: E402

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    try:
        from wheel.bdist_wheel import bdist_wheel
    except ImportError as error:
        raise stop(
            f"setuptools {setuptools.__version__} of {sys.executable} needs the package wheel; {WAY_OUT}"
        ) from error


class CleanBuild(build):
    """Starts from an empty folder: what an earlier build left there would go into the wheel."""

    def run(self) -> None:
        folder = Path(self.build_lib).resolve()
        if HERE / "build" in folder.parents:
            shutil.rmtree(folder, ignore_errors=True)
        super().run()


class NativeBuild(build_ext):
    """Puts libfocal_ext.so into the package, or into the build folder; there with what C++ programs need."""

    def run(self) -> None:
        from native_build.run_cmake import build_library

        build_library(HERE if self.inplace else Path(self.build_lib).resolve(), everything=not self.inplace)

    def get_outputs(self) -> list[str]:
        return [] if self.inplace else [str(p) for p in (Path(self.build_lib) / "focal_ext").glob("*.so")]


class AnyPythonWheel(bdist_wheel):
    """The library is the same for every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    reason = why_pure(os.environ)
    native = {}
    commands = {"build": CleanBuild}
    if reason:
        print(f"focal_ext: building without native kernels: {reason}", file=sys.stderr)
    else:
        native = {"ext_modules": [setuptools.Extension("focal_ext.libfocal_ext", [])]}
        commands |= {"build_ext": NativeBuild, "bdist_wheel": AnyPythonWheel}
    # Words for the licence that setuptools takes before and since 77: pyproject.toml has none.
    licence = "license_expression" if VERSION >= (77,) else "license"
    setuptools.setup(cmdclass=commands, **native, **{licence: "BSD-3-Clause"})

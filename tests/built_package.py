# Owns: the native library built by CMake in a way of its own, beside a copy of the package, to be put on sys.path.
# Must not know: why it is built so.
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).resolve().parents[1]
CMAKE, NINJA = (
    shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("cmake", "ninja")
)


def command(*arguments: object) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


def stub_libraries(torch_root: Path, compiler: str = "c++") -> None:
    """Libraries of torch's names without a symbol: a linker asks for no more."""
    (torch_root / "lib").mkdir(exist_ok=True)
    for name in ("libtorch.so", "libtorch_cpu.so"):
        command(compiler, "-shared", f"-Wl,-soname,{name}", "-x", "c++", "/dev/null", "-o", torch_root / "lib" / name)


def configure(build: Path, torch_root: Path, flags: str, *options: str) -> None:
    """CPU kernels of every level with the product's own flags; `flags` come before them, and -O3 is theirs to
    replace."""
    options = (
        f"-DCMAKE_CXX_FLAGS={flags}",
        "-DCMAKE_BUILD_TYPE=Tested",
        "-DFOCAL_EXT_CUDA=OFF",
        f"-DFOCAL_EXT_TORCH_ROOT={torch_root}",
        f"-DCMAKE_MAKE_PROGRAM={NINJA}",
        *options,
    )
    command(CMAKE, "-G", "Ninja", "-S", ROOT, "-B", build, *options)


def build_package(home: Path, torch_root: Path, flags: str, build: Path | None = None) -> Path:
    """The folder to put on sys.path. Two packages may share the folder `build`: only what sees torch's headers is
    compiled for both."""
    build, packages = build or home / "cmake", home / "site-packages"
    build.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{build}.lock"):  # a process that comes later finds nothing to compile
        configure(build, torch_root, flags, f"-DCMAKE_INSTALL_PREFIX={packages}")
        command(CMAKE, "--build", build)
        command(CMAKE, "--install", build, "--component", "python")
        shutil.copytree(
            ROOT / "focal_ext",
            packages / "focal_ext",
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("*.so", "__pycache__"),
        )
    return packages

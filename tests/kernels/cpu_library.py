# Owns: the ops library with a sanitizer compiled in, in a folder of its own beside a copy of the package, and Python runs over it.
# Must not know: what is run.
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from filelock import FileLock
from evidence import ROOT, fixed_addresses

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
RUNTIME = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1", "TSAN_OPTIONS": "halt_on_error=1"}
CMAKE, NINJA = (shutil.which(name, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") for name in ("cmake", "ninja"))


def command(*arguments: object) -> str:
    done = subprocess.run([*map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@cache
def build(flavour: str) -> Path:
    """The folder to put on sys.path. Levels and flags are the product's own; what changes is -O1, the sanitizer and that symbols stay."""
    home = ROOT / "build/sanitized" / flavour
    flags = " ".join((*FLAGS[flavour], "-O1", "-g1", "-fno-omit-frame-pointer"))
    configure = [f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_BUILD_TYPE=Sanitized", "-DFOCAL_EXT_CUDA=OFF"]
    configure += [f"-DFOCAL_EXT_TORCH_ROOT={Path(torch.__file__).parent}", f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DCMAKE_INSTALL_PREFIX={home / 'site-packages'}"]
    home.mkdir(parents=True, exist_ok=True)
    with FileLock(home / "lock"):  # a process that comes later finds nothing to compile
        command(CMAKE, "-G", "Ninja", "-S", ROOT, "-B", home / "cmake", *configure)
        command(CMAKE, "--build", home / "cmake")
        command(CMAKE, "--install", home / "cmake", "--component", "python")
        shutil.copytree(ROOT / "focal_ext", home / "site-packages/focal_ext", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return home / "site-packages"


@cache
def fork_join() -> Path:
    library = ROOT / "build/sanitized/fork_join.so"
    with FileLock(library.with_suffix(".lock")):
        command("cc", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", Path(__file__).with_name("fork_join.c"), "-ldl", "-o", library)
    return library


def python(flavour: str, *arguments: str, **changes: str) -> tuple[int, str]:
    """Exit status and output of a Python process over the sanitized library. cwd is the tests' folder, not the repository: its package has another library."""
    package = build(flavour)
    preloaded = [command("g++", f"-print-file-name={name}").strip() for name in RUNTIME[flavour]]
    preloaded += [str(fork_join())] if flavour == "thread" else []
    environment = {**os.environ, **OPTIONS, "LD_PRELOAD": " ".join(preloaded), "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1", **changes}
    done = subprocess.run([*fixed_addresses(), sys.executable, *arguments], cwd=ROOT / "tests", env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr

# Owns: the ops library with a sanitizer compiled in, in a folder of its own beside a copy of the package, and Python
# runs over it.
# Must not know: what is run.
from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from built_package import ROOT, build_package, command
from evidence import fixed_addresses
from filelock import FileLock

FLAGS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
RUNTIME = {"address": ("libasan.so", "libubsan.so"), "thread": ("libtsan.so",)}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    "TSAN_OPTIONS": f"halt_on_error=1 suppressions={Path(__file__).with_name('thread_sanitizer.supp')}",
}


@cache
def build(flavour: str) -> Path:
    """The folder to put on sys.path. Levels and flags are the product's own; what changes is -O1, the sanitizer and
    that symbols stay."""
    home = ROOT / "build/sanitized" / flavour
    flags = " ".join((*FLAGS[flavour], "-O1", "-g1", "-fno-omit-frame-pointer"))
    return build_package(home, Path(torch.__file__).parent, flags)


@cache
def fork_join() -> Path:
    library = ROOT / "build/sanitized/fork_join.so"
    with FileLock(library.with_suffix(".lock")):
        command(
            "cc",
            "-O1",
            "-fPIC",
            "-shared",
            "-Wall",
            "-Wextra",
            "-Werror",
            Path(__file__).with_name("fork_join.c"),
            "-ldl",
            "-o",
            library,
        )
    return library


def python(flavour: str, *arguments: str, **changes: str) -> tuple[int, str]:
    """Exit status and output of a Python process over the sanitized library. cwd is the tests' folder, not the
    repository: its package has another library."""
    package = build(flavour)
    preloaded = [command("g++", f"-print-file-name={name}").strip() for name in RUNTIME[flavour]]
    preloaded += [str(fork_join())] if flavour == "thread" else []
    environment = {
        **os.environ,
        **OPTIONS,
        "LD_PRELOAD": " ".join(preloaded),
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        **changes,
    }
    done = subprocess.run(
        [*fixed_addresses(), sys.executable, *arguments],
        cwd=ROOT / "tests",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr

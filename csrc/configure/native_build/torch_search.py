# Owns: finding on disk the torch to build against, in every environment that may have asked for the build.
# Must not know: compilers, CMake. Never imports torch: that takes seconds.
"""Any torch >= 2.10 will do: a library built against one loads into all others. The first one found decides. One that
is too old is named and not stepped past, since the environment that asked for the build would go on without kernels.

pip's and uv's build isolation hide the environment. pip runs its interpreter with changed variables, so it is asked
again without them. uv makes an environment of its own and keeps the caller's PATH and PWD.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from .switches import PURE, stop

OLDEST = (2, 10)
PARTS = ("include/torch/csrc/stable/library.h", "lib/libtorch.so", "lib/libtorch_cpu.so")
WHERE = (
    "import importlib.util, sys; sys.path = [p for p in sys.path if p];"  # not the folder that it is called in
    "spec = importlib.util.find_spec('torch'); print(spec.origin if spec else None)"
)
HIDING = ("PYTHONPATH", "PYTHONNOUSERSITE", "PYTHONHOME")  # by which pip hides an environment from a build


class Search(NamedTuple):
    torch: Path | None  # the folder of the package, good to build against
    version: str
    looked_at: tuple[str, ...]  # a line for each place, the last one why its torch is no good


def search(environ: Mapping[str, str]) -> Search:
    """Looks at FOCAL_EXT_TORCH_ROOT alone if it is set, else at one environment after the other."""
    looked_at = []
    for place, torch in places(environ):
        problem = problem_of(torch) if torch else "no torch"
        looked_at.append(f"{place}: {problem or torch}")
        if torch:
            return Search(None if problem else torch, version_of(torch), tuple(looked_at))
    return Search(None, "", tuple(looked_at))


def torch_to_build_against(found: Search) -> Path:
    """The folder of a torch; stops with what was looked at and the ways out where none will do."""
    if found.torch:
        return found.torch
    needed = ".".join(map(str, OLDEST))
    raise stop(
        f"there is a C++ compiler, but no torch >= {needed} to build the kernels against. Looked at\n"
        + "".join(f"  - {line}\n" for line in found.looked_at)
        + f"Ways out: install torch >= {needed} first, then build where it can be seen:\n"
        "  - pip:  pip install 'setuptools>=70.1' cmake ninja && pip install --no-build-isolation .\n"
        "  - uv:   uv pip install 'setuptools>=70.1' cmake ninja && uv pip install --no-build-isolation .\n"
        "  - or name its folder: FOCAL_EXT_TORCH_ROOT=<site-packages>/torch\n"
        f"  - or go without: {PURE}"
    )


def version_of(torch: Path) -> str:
    version = torch / "version.py"
    found = (
        re.search(r"^__version__ = '(\d+\.\d+[^']*)'", version.read_text(), re.MULTILINE) if version.exists() else None
    )
    return found[1] if found else ""


def problem_of(torch: Path) -> str | None:
    """Why nothing can be built against this folder, in words that name it."""
    version = version_of(torch)
    if not version:
        meant = f"; {torch / 'torch'} is one" if version_of(torch / "torch") else ""
        return f"{torch} is not the folder of a torch package, it has no version.py of one{meant}"
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        return f"torch {version} in {torch} is too old"
    missing = [part for part in PARTS if not (torch / part).exists()]
    return f"torch {version} in {torch} is incomplete, it has no {missing[0]}" if missing else None


def places(environ: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    named = environ.get("FOCAL_EXT_TORCH_ROOT")
    if named:
        yield "FOCAL_EXT_TORCH_ROOT", Path(named).expanduser().absolute()
        return
    spec = find_spec("torch")
    yield f"what {sys.executable} imports during this build", Path(spec.origin).parent if spec and spec.origin else None
    for what, python in interpreters(environ):
        yield f"{what}, {python}", asked(python, environ)


def interpreters(environ: Mapping[str, str]) -> Iterator[tuple[str, Path]]:
    """Those whose environment may have asked for the build, the likely ones first, each once."""
    seen = set()
    for what, python in candidates(environ):
        if python and python.parent not in seen and python.exists():
            seen.add(python.parent)
            yield what, python


def candidates(environ: Mapping[str, str]) -> Iterator[tuple[str, Path | None]]:
    yield "the environment of this build", Path(sys.executable)
    for name in ("VIRTUAL_ENV", "CONDA_PREFIX", "UV_PROJECT_ENVIRONMENT"):
        yield name, Path(environ[name], "bin/python") if environ.get(name) else None
    yield "the interpreter that made the environment of this build", maker()
    inside = Path(sys.executable).parent
    others = os.pathsep.join(
        folder for folder in environ.get("PATH", "").split(os.pathsep) if folder and Path(folder) != inside
    )
    on_path = shutil.which("python3", path=others) or shutil.which("python", path=others)
    active = bool(on_path) and (Path(str(on_path)).parents[1] / "pyvenv.cfg").exists()
    first = ("the first python on the PATH", Path(on_path) if on_path else None)
    if active:
        yield first
    # uv uses the .venv of the folder that it is called in, or of one above, when no environment is active.
    called_in = Path(environ.get("PWD") or os.getcwd())
    yield (
        "the .venv where the build was called",
        next((p for f in (called_in, *called_in.parents) if (p := f / ".venv/bin/python").exists()), None),
    )
    if not active:
        yield first
    base = getattr(sys, "_base_executable", None)
    yield "the base interpreter", Path(base) if base else None


def maker() -> Path | None:
    """venv writes down who called it; pypa/build's isolated environments are made so."""
    config = Path(sys.prefix, "pyvenv.cfg")
    found = re.search(r"^command = (.+) -m venv ", config.read_text(), re.MULTILINE) if config.exists() else None
    return Path(found[1]) if found else None


def asked(python: Path, environ: Mapping[str, str]) -> Path | None:
    """The folder of the torch that an interpreter would import, from the user site and the system's packages, too."""
    seen = {name: value for name, value in environ.items() if name not in HIDING}
    try:
        done = subprocess.run([str(python), "-c", WHERE], env=seen, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    origin = done.stdout.strip().splitlines()[-1:]
    return Path(origin[0]).parent if done.returncode == 0 and origin and origin[0] != "None" else None

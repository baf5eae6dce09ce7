# Owns: the environments that the built distributions are tried in, outside the source tree; made on demand, kept in
# .venv-wheels.
# Must not know: what is tested in them.
from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
HOME, DIST = ROOT / ".venv-wheels", ROOT / "dist"
# A build of every source file, for what is packed and not for how fast it runs: a fifth of the time, or less.
UNOPTIMIZED = {"CMAKE_BUILD_TYPE": "Tested", "CXXFLAGS": "-O0", "LDFLAGS": "-s"}  # -s as of a release
TESTS_NEED = ("numpy", "pytest", "pytest-xdist", "mpmath")
SUPPORTED = range(10, 15)


def clean(**changes: str) -> dict[str, str]:
    """The environment without what would point a program at the source tree or change what focal_ext does, and
    without a cache of compiled files: two builds are two."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FOCAL_EXT_", "PYTHON", "VIRTUAL_ENV", "MAKE", "CCACHE_"))
        and not name.endswith("_COMPILER_LAUNCHER")
    }
    return {**kept, "OMP_NUM_THREADS": "1", "UV_PYTHON_DOWNLOADS": "never", **changes}


def run(*command: object, folder: Path = HOME, **changes: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=clean(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
    return done.stdout


@functools.cache
def pythons() -> dict[int, str]:
    """An interpreter for each minor version that the package supports, if there is one: this one, on the PATH, or
    pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = {}
    for minor in SUPPORTED:
        name = f"python3.{minor}"
        places = [shutil.which(name), *sorted(map(str, pyenv.glob(f"3.{minor}.*/bin/{name}")))]
        program = "import sys; sys.exit(sys.version_info[1])"  # a name that pyenv has no version for does not run
        runs = (
            p
            for p in places
            if p and subprocess.run([p, "-c", program], capture_output=True, check=False).returncode == minor
        )
        python = sys.executable if minor == sys.version_info.minor else next(runs, None)
        if python:
            found[minor] = python
    return found


class Environment(NamedTuple):
    name: str
    torch: str
    installer: str  # "pip" or "uv"
    minor: int = sys.version_info.minor

    @property
    def folder(self) -> Path:
        return HOME / f"{self.name}-{self.torch}-3{self.minor}".replace(" ", "-")

    @property
    def executable(self) -> Path:
        return self.folder / "bin/python"

    @property
    def package(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages")) / "focal_ext"

    def install(self, *arguments: object, **changes: str) -> None:
        """With the installer of this environment."""
        pip = (self.executable, "-m", "pip") if self.installer == "pip" else (HOME / "bin/uv", "pip")
        run(
            *pip,
            "install",
            "-q",
            *(("--python", self.executable) if self.installer == "uv" else ()),
            *arguments,
            **changes,
        )

    def prepare(self) -> Environment:
        """Makes the environment with its torch unless it is there."""
        done, packages = self.folder / "ready", (f"torch=={self.torch}", *TESTS_NEED)
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            python = pythons()[self.minor]
            made_by = (
                (python, "-m", "venv") if self.installer == "pip" else (HOME / "bin/uv", "venv", "-q", "-p", python)
            )
            run(*made_by, self.folder)
        if not done.exists() or done.read_text() != " ".join(packages):
            self.install(*packages)
            done.write_text(" ".join(packages))
        return self

    def replace_focal_ext(self, distribution: Path) -> Environment:
        """Installs a wheel in place of whatever focal_ext is there, and checks that all it needs is there too."""
        again = ("--reinstall-package", "focal_ext") if self.installer == "uv" else ("--force-reinstall",)
        self.prepare().install("--no-deps", *again, distribution)
        run(HOME / "bin/uv", "pip", "check", "--python", self.executable)
        return self


# pip knows local CPU builds of torch that uv does not look for.
CPU = Environment("CPU build", "2.13.0", "pip")
CUDA = Environment("CUDA build", "2.14.1", "uv")
OTHER_PYTHONS = tuple(
    Environment("other Python", "2.14.1", "uv", minor) for minor in sorted({*pythons()} - {min(pythons()), CUDA.minor})
)
OLDEST = Environment("oldest torch", "2.10.0", "uv", min(pythons()))
# The library serves every torch from 2.10 on and every Python; each is tried with another of the other.
NATIVE = (
    OLDEST,
    CPU,
    CUDA,
    *OTHER_PYTHONS,
)
# The oldest that pyproject.toml asks for: there is no library for it.
REFERENCE = Environment("reference alone", "2.6.0", "uv")
EVERY = (*NATIVE, REFERENCE)


def built(pattern: str) -> Path:
    """The one file in dist that `make wheel` built under this name."""
    found = list(DIST.glob(pattern))
    assert len(found) == 1, f"expected one {pattern} in {DIST}, found {found}; run make wheel"
    return found[0]


if __name__ == "__main__":  # the downloads alone: make .venv-wheels/.environments
    for each in EVERY:
        start = time.monotonic()
        each.prepare()
        print(f"{each.folder.name}: {time.monotonic() - start:.0f} s", flush=True)

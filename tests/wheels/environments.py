# Owns: the environments that the built distributions are tried in, outside the source tree; made on demand, kept in .venv-wheels.
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
TESTS_NEED = ("numpy", "pytest", "mpmath")


def clean(**changes: str) -> dict[str, str]:
    """The environment without what would point a program at the source tree or change what focal_ext does."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("FOCAL_EXT_", "PYTHON", "VIRTUAL_ENV", "MAKE"))}
    return {**kept, "OMP_NUM_THREADS": "1", "UV_PYTHON_DOWNLOADS": "never", **changes}


def run(*command: object, folder: Path = HOME, **changes: str) -> str:
    """The output of a command that must succeed."""
    done = subprocess.run([*map(str, command)], cwd=folder, env=clean(**changes), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}"
    return done.stdout


def version_of(python: str) -> tuple[int, int] | None:
    """Major and minor version of an interpreter that can build extensions; None when it cannot, or does not run."""
    program = "import os, sys, sysconfig; assert os.path.exists(sysconfig.get_path('include') + '/Python.h'); print(*sys.version_info[:2])"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, env=clean(), check=False)
    return tuple(map(int, done.stdout.split())) if done.returncode == 0 else None  # type: ignore[return-value]


@functools.cache
def other_python() -> str | None:
    """An interpreter of another version: FOCAL_EXT_OTHER_PYTHON, else the newest of python3.X on the PATH and pyenv's."""
    named = os.environ.get("FOCAL_EXT_OTHER_PYTHON")
    minors = [minor for minor in range(14, 9, -1) if minor != sys.version_info.minor]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser() / "versions"
    found = [shutil.which(f"python3.{minor}") for minor in minors] + [str(path) for minor in minors for path in sorted(pyenv.glob(f"3.{minor}.*/bin/python3.{minor}"))]
    return next((python for python in ([named] if named else found) if python and version_of(python) not in (None, sys.version_info[:2])), None)


class Environment(NamedTuple):
    name: str
    torch: str
    installer: str  # "pip" or "uv"
    python: str = sys.executable

    @property
    def folder(self) -> Path:
        return HOME / f"{self.name}-{self.torch}-{''.join(map(str, version_of(self.python) or ()))}".replace(" ", "-")

    @property
    def executable(self) -> Path:
        return self.folder / "bin/python"

    @property
    def package(self) -> Path:
        return next(self.folder.glob("lib/python*/site-packages")) / "focal_ext"

    def install(self, *arguments: object, **changes: str) -> None:
        """With the installer of this environment."""
        pip = (self.executable, "-m", "pip") if self.installer == "pip" else (HOME / "bin/uv", "pip")
        run(*pip, "install", "-q", *(("--python", self.executable) if self.installer == "uv" else ()), *arguments, **changes)

    def prepare(self) -> Environment:
        """Makes the environment with its torch unless it is there."""
        done = self.folder / "ready"
        if not done.exists():
            shutil.rmtree(self.folder, ignore_errors=True)
            run(self.python, "-m", "venv", self.folder)
            self.install(f"torch=={self.torch}", *TESTS_NEED)
            done.touch()
        return self

    def replace_focal_ext(self, distribution: Path) -> Environment:
        """Installs a wheel in place of whatever focal_ext is there, and checks that all it needs is there too."""
        again = ("--reinstall-package", "focal_ext") if self.installer == "uv" else ("--force-reinstall",)
        self.prepare().install("--no-deps", *again, distribution)
        run(HOME / "bin/uv", "pip", "check", "--python", self.executable)
        return self


# pip knows local CPU builds of torch that uv does not look for.
OLDEST = Environment("oldest torch", "2.10.0", "uv")
CPU = Environment("CPU build", "2.13.0", "pip")
CUDA = Environment("CUDA build", "2.14.1", "uv")
OTHER = Environment("other Python", "2.14.1", "uv", other_python() or "")
EVERY = (OLDEST, CPU, CUDA, *([OTHER] if other_python() else []))


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

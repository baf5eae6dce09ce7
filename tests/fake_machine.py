# Owns: programs and torch packages that only look like ones, for tests of the build.
# Must not know: what the build does with them.
from __future__ import annotations

from pathlib import Path

from native_build.torch_search import PARTS


def program(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(("#!/bin/sh", *lines)) + "\n")
    path.chmod(0o755)
    return path


def fake_torch(folder: Path, version: str, parts: tuple[str, ...] = PARTS) -> Path:
    for part in ("__init__.py", *parts):
        (folder / part).parent.mkdir(parents=True, exist_ok=True)
        (folder / part).touch()
    (folder / "version.py").write_text(f"from typing import Optional\n__version__ = '{version}'\ndebug = False\n")
    return folder

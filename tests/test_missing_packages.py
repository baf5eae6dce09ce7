# Owns: what `make PYTHON=python3` says about an interpreter that lacks packages.
# Must not know: which packages a target needs (Makefile).
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MISSING = Path(__file__).resolve().parents[1] / ".ci/missing.py"


def said(*requirements: str) -> str:
    """The message; empty where nothing is missing."""
    done = subprocess.run([sys.executable, str(MISSING), *requirements], capture_output=True, text=True)
    assert bool(done.returncode) == bool(done.stderr), "a message is a failure"
    return done.stderr


def test_every_missing_package_is_in_one_message_with_the_command_that_installs_them(tmp_path: Path) -> None:
    listed = tmp_path / "requirements.txt"
    listed.write_text(
        "# a comment\nno-such-package>=1\npytest>=9999  # another\npytest>=8\nmissing-too; python_version < '3'\n"
    )
    message = said("torch>=2.10", "also-absent", str(listed))
    assert "\n  also-absent: not installed\n  no-such-package>=1: not installed\n" in message
    assert f": {pytest.__version__} is installed\n" in message
    assert f"{sys.executable} -m pip install 'also-absent' 'no-such-package>=1' 'pytest>=" in message
    assert "torch" not in message and "missing-too" not in message


def test_an_interpreter_that_has_everything_is_told_nothing() -> None:
    assert said("torch>=2.10", "pytest") == ""


def test_a_vendors_build_before_a_release_is_that_release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = tmp_path / "vendors_torch-2.10.0a0+5d0.nv25.dist-info/METADATA"
    facts.parent.mkdir()
    facts.write_text("Metadata-Version: 2.1\nName: vendors-torch\nVersion: 2.10.0a0+5d0.nv25\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert said("vendors-torch>=2.10") == ""
    assert "2.10.0a0+5d0.nv25 is installed" in said("vendors-torch>=2.11")

# Owns: runs under compute-sanitizer, where it is installed.
# Must not know: what runs (exercise.py).
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("tool", ["memcheck", "racecheck", "initcheck"])
def test_a_sanitizer_finds_nothing(tool: str) -> None:
    # Without torch's cache every tensor is an allocation of its own, and its end is seen.
    env = {
        **os.environ,
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE.parents[1])]),
    }
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, str(HERE / "exercise.py")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-4000:]}{done.stderr[-2000:]}"

# Owns: that a call which runs out of memory raises, leaves every tensor of the user as it was, and can be repeated.
# Must not know: the calls (scarce_memory.py).
from __future__ import annotations

import json
import os
import subprocess
import sys

import scarce_memory


def test_a_call_that_runs_out_of_memory_raises_and_changes_nothing() -> None:
    path = repr([entry for entry in sys.path if entry])
    program = (
        f"import sys, runpy; sys.path[:0] = {path}; runpy.run_path({scarce_memory.__file__!r}, run_name='__main__')"
    )
    # Else glibc serves later tensors from memory that earlier ones gave back, which no limit reaches.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-300:]}\n{done.stderr[-2000:]}"
    calls = [json.loads(line) for line in done.stdout.splitlines()]
    refused = [call for call in calls if call["raised"]]
    assert [call for call in refused if call["again"] is not True or not call["untouched"]] == []
    assert [call for call in calls if not call["raised"] and not call["right"]] == []
    assert [call for call in refused if not call["raised"].startswith(("RuntimeError", "MemoryError"))] == []
    assert all("not enough memory for a result of" in call["raised"] for call in refused if call["call"] == "sum")
    for name, needs in scarce_memory.NEEDS_MEMORY.items():  # each met limits below and above what it needs
        assert {bool(call["raised"]) for call in calls if call["call"] == name} == (
            {True, False} if needs else {False}
        ), name

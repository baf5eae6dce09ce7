# Owns: that no argument ends the process or gives a wrong result: thousands of malformed calls, each an exception or
# right.
# Must not know: the calls (malformed.py), and which of them are malformed.
from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import malformed

PROGRAM = Path(malformed.__file__)
# What a call may raise. RuntimeError and NotImplementedError come from torch: a backward that writes an overlapping
# view, a dtype without operations.
ALLOWED = {"right", "TypeError", "ValueError", "RuntimeError", "NotImplementedError"}


def test_every_parameter_with_every_malformed_value_raises_or_gives_the_right_result() -> None:
    # The path, not the environment: the same package as in this process.
    path = repr([entry for entry in sys.path if entry])
    program = f"import sys, runpy; sys.path[:0] = {path}; runpy.run_path({str(PROGRAM)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program], capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"the process ended in {lines[-1] if lines else 'its imports'}\n{done.stderr[-2000:]}"
    outcomes = [(json.loads(call), outcome) for call, outcome in (line.split("\t") for line in lines)]
    assert [(call, outcome) for call, outcome in outcomes if outcome not in ALLOWED] == []
    count = Counter(outcome for _, outcome in outcomes)
    single = [changes for (_, _, changes), _ in outcomes if len(changes) == 1]
    assert malformed.LOSSES and len(single) >= 500 * len(malformed.LOSSES) and len(outcomes) > len(single)
    assert count["right"] > 100 and count["TypeError"] > 100 and count["ValueError"] > 100, count

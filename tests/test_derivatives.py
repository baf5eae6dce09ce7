# Owns: every loss header's derivative written by hand against the one that dual numbers make of its value, and a loss
# without one.
# Must not know: formulas.
from __future__ import annotations

import csv
import inspect
import shutil
import subprocess
from pathlib import Path

import pytest
from focal_ext._spec import LOSSES
from formulas import complete
from losses import DECLARED
from losses.parts import Declared, Options

SOURCE = Path(__file__).parent / "derivatives" / "derivatives.cpp"
COMPILER = next((path for name in ("c++", "g++", "clang++") if (path := shutil.which(name))), None)

LIMITS = {
    "negative": (1e-14, "both derivatives are some twenty operations of half a unit of 2^-52, 1.1e-16, each"),
    "positive": (1e-14, "the same"),
    "dense": (1e-14, "the same"),
    "kernel gradient": (24 * 2.0**-23, "float arithmetic, the claim for soft targets"),
    "kernel loss": (40 * 2.0**-23, "tolerances.py: terms of 24 units, lanes of 32 terms"),
}


def numbers_of(loss: Declared, options: Options) -> tuple[float, ...]:
    """As the ops take them."""
    given = complete(loss.name, options)
    numbers: tuple[float, ...] = loss.spec.parameters(
        **{name: given[name] for name in inspect.signature(loss.spec.parameters).parameters}
    )
    return numbers


@pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler")
def test_derivatives_by_hand_are_those_of_dual_numbers(tmp_path: Path) -> None:
    program = tmp_path / "derivatives"
    flags = [
        "-std=c++20",
        "-O2",
        "-fopenmp-simd",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-I",
        str(SOURCE.parents[2] / "csrc/losses"),
    ]
    subprocess.run([COMPILER, *flags, str(SOURCE), "-o", str(program)], check=True)
    calls = "".join(
        f"{loss.spec.number} {' '.join(map(repr, numbers_of(loss, options)))}\n"
        for loss in DECLARED.values()
        for options in loss.settings
    )
    rows = list(
        csv.reader(
            subprocess.run([program], check=True, input=calls, capture_output=True, text=True).stdout.splitlines()
        )
    )
    assert {row[0] for row in rows} == {*(str(spec.number) for spec in LOSSES if not spec.is_per_row), "poly1"}, (
        "a loss of the list is missing"
    )
    for *what, method, error, at in rows:
        assert float(error) <= LIMITS[method][0], f"{what} {method}: off by {error} at {at}"

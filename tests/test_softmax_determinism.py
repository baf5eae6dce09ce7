# Owns: softmax results to the bit: any number of threads, AVX2 against AVX-512; and the tolerances on every instruction
# set.
# Must not know: what the right results are (test_softmax_values.py).
from __future__ import annotations

import hashlib
import json

import pytest
import torch
from cases import PUBLIC
from softmax_table import LOSS, ROWS, Row, build
from test_determinism import TESTS, bits, levels_of_this_machine, python_at

pytestmark = pytest.mark.native
LARGE = [row for row in ROWS if torch.Size(row.shape).numel() > 16384]


def results(row: Row) -> bytes:
    return b"".join(map(bits, build(row).run(PUBLIC, LOSS)))


def digest(whole_gammas: bool) -> str:
    """Fingerprint of all rows; run in a subprocess for each instruction set."""
    return hashlib.sha256(
        b"".join(results(row) for row in ROWS if (row.gamma in (0, 1, 2)) == whole_gammas)
    ).hexdigest()


def test_large_rows_cross_chunks() -> None:
    assert len(LARGE) > 20 and {row.targets.split()[0] for row in LARGE} == {"ids", "dense"}


@pytest.mark.parametrize("row", LARGE, ids=str)
def test_any_number_of_threads_gives_the_same_bits(row: Row) -> None:
    once = results(row)
    for threads in (2, 3, 1):
        torch.set_num_threads(threads)
        assert results(row) == once, f"{threads} threads"


def test_avx2_and_avx512_give_the_same_bits() -> None:
    program = "import json, test_softmax_determinism as t; print(json.dumps([t.digest(True), t.digest(False)]))"
    found = [json.loads(python_at(level, "-c", program)) for level in levels_of_this_machine() if level != "baseline"]
    assert all(digests == found[0] for digests in found)


@pytest.mark.parametrize("level", levels_of_this_machine()[:-1])
def test_lower_instruction_sets_meet_the_same_tolerances(level: str) -> None:
    """The highest one is what the rest of the suite runs on."""
    modules = [str(TESTS / f"test_softmax_{name}.py") for name in ("values", "extremes")]
    python_at(level, "-m", "pytest", "-x", "-p", "no:cacheprovider", *modules, "-k", "not focal_ext.reference")

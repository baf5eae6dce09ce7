# Owns: every row of the table of cases on the host-run CUDA kernels, with another grid than in test_cuda_host.py; where
# two numbers per instruction are another code path, these too.
# Must not know: formulas.
from __future__ import annotations

import evidence
import pytest
import test_cuda_host
from cases import Case
from cuda_host import table

pytestmark = test_cuda_host.pytestmark

STREAM = set(table.rows_that_stream())
NEXT_GRID = dict(zip(table.GRIDS, (*table.GRIDS[1:], table.GRIDS[0])))
RUNS = [
    (case, test_cuda_host.FLAVOUR, grid)
    for case in table.ROWS
    for grid in table.GRIDS
    if grid == NEXT_GRID[table.GRID_OF[case]] or (str(case), grid) in evidence.CHECKED
]
if test_cuda_host.FLAVOUR == "plain":
    RUNS += [(case, "packed_plain", grid) for case, _, grid in RUNS if case in STREAM]


@pytest.mark.parametrize("case, flavour, grid", RUNS, ids=str)
def test_loss_and_gradient_are_those_of_the_float64_reference(
    case: Case, flavour: str, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    test_cuda_host.use(monkeypatch, flavour, grid)
    table.check(case, grid)

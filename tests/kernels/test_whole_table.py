# Owns: every row of the table of cases on the host-run CUDA kernels, with every grid; two numbers per instruction where that is another code path.
# Must not know: formulas.
from __future__ import annotations

import pytest
import test_cuda_host
from cases import Case
from cuda_host import table

pytestmark = test_cuda_host.pytestmark

STREAM = set(table.rows_that_stream())
RUNS = [(case, "plain") for case in table.ROWS] + [(case, "packed_plain") for case in table.ROWS if case in STREAM]
if test_cuda_host.FLAVOUR != "plain":
    RUNS = [(case, test_cuda_host.FLAVOUR) for case in table.ROWS]


@pytest.mark.parametrize("grid", table.GRIDS)
@pytest.mark.parametrize("case, flavour", RUNS, ids=str)
def test_loss_and_gradient_are_those_of_the_float64_reference(case: Case, grid: int, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test_cuda_host.use(monkeypatch, flavour, grid)
    table.check(case, grid)

# Owns: every row of the table of cases on the host-run CUDA kernels, with every grid, one and two numbers per instruction.
# Must not know: formulas.
from __future__ import annotations

import pytest
import test_cuda_host
from cases import Case
from cuda_host import table

pytestmark = test_cuda_host.pytestmark


@pytest.mark.parametrize("flavour", ["plain", "packed_plain"] if test_cuda_host.FLAVOUR == "plain" else [test_cuda_host.FLAVOUR])
@pytest.mark.parametrize("grid", table.GRIDS)
@pytest.mark.parametrize("case", table.ROWS, ids=str)
def test_loss_and_gradient_are_those_of_the_float64_reference(case: Case, grid: int, flavour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    test_cuda_host.use(monkeypatch, flavour, grid)
    table.check(case, grid)

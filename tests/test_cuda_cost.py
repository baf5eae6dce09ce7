# Owns: the budgets of the compiled CUDA kernels, read from the machine code of the library under test.
# Must not know: how code is read and what the limits are (bench/sass.py, bench/kernels.py).
from __future__ import annotations

import pytest

from bench import kernels, sass

pytestmark = pytest.mark.cuda_code


@pytest.fixture(scope="module")
def compiled() -> list[sass.Kernel]:
    return sass.read(kernels.LIBRARY)


def test_every_kernel_keeps_its_budget(compiled: list[sass.Kernel]) -> None:
    assert kernels.violations(compiled, kernels.LIBRARY.stat().st_size) == []


def test_every_shipped_architecture_is_in_the_library(compiled: list[sass.Kernel]) -> None:
    assert {k.arch for k in compiled} >= {"sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"}


def test_a_dearer_loop_would_be_found(compiled: list[sass.Kernel]) -> None:
    row = next(r for r in kernels.rows(compiled) if (r.arch, r.dtype, r.targets, r.gamma, r.flow) == ("sm_90", "fp32", "ids", "2", "loss and gradient"))
    row.loop.instructions["FFMA"] += 16 * 10
    try:
        assert any("sm_90 fp32 ids gamma 2" in sentence for sentence in kernels.violations(compiled, 0))
    finally:
        row.loop.instructions["FFMA"] -= 16 * 10

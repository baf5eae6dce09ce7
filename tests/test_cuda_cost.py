# Owns: the budgets of the compiled CUDA kernels, read from the machine code of the library under test.
# Must not know: how code is read and what the limits are (bench/sass.py, bench/kernels.py).
from __future__ import annotations

from dataclasses import replace

import pytest

from bench import kernels, sass

pytestmark = pytest.mark.cuda_code


@pytest.fixture(scope="module")
def compiled() -> list[sass.Kernel]:
    return sass.read(kernels.LIBRARY)


def test_every_kernel_keeps_its_budget(compiled: list[sass.Kernel]) -> None:
    assert kernels.violations(compiled, kernels.LIBRARY.stat().st_size) == []


def test_every_shipped_architecture_is_in_the_library(compiled: list[sass.Kernel]) -> None:
    assert {k.arch for k in compiled} >= {"sm_75", "sm_80", "sm_90", "sm_100", "sm_120"}


def test_the_careful_path_is_told_from_every_other_loop(compiled: list[sass.Kernel]) -> None:
    every = kernels.rows(compiled)
    careful = [row for row in every if row.flow.startswith(kernels.CAREFUL)]
    streams = {(row.arch, row.dtype, row.targets, row.gamma): row for row in every if row.flow == kernels.HOT}
    assert len(careful) == sum(len(kernels.careful_flows(targets)) for _, _, targets, _ in streams) > 0
    for row in careful:
        if row.is_focal:
            # careful_tile's kBatch
            assert (row.logits, row.loop.count("MUFU.EX2")) == ((1, 2) if row.gamma == "any" else (2, 2))
        assert row.loop.stores >= row.logits and not row.loop.vector_loads
        # its label, from shared memory
        assert row.loop.count("LDS") == (row.logits if "ids" in (row.targets, row.flow.split()[-1]) else 0)
        assert not row.loop.count("VOTE", "SHFL", "BAR")  # not the loop over tiles
        assert row.per_logit() > streams[row.arch, row.dtype, row.targets, row.gamma].per_logit()


def test_a_loop_is_told_on_every_architecture_or_on_none(compiled: list[sass.Kernel]) -> None:
    found: dict[tuple[str, ...], set[str]] = {}
    for row in (row for row in kernels.rows(compiled) if row.flow != kernels.DENSE):
        found.setdefault((row.dtype, row.targets, row.gamma, row.flow), set()).add(row.arch)
    assert {name: archs for name, archs in found.items() if not archs >= {"sm_80", "sm_90", "sm_100", "sm_120"}} == {}


def test_a_careful_path_that_is_not_recognised_would_be_found(compiled: list[sass.Kernel]) -> None:
    kernel = next(k for k in compiled if (k.arch, k.identity) == ("sm_90", ("fp32", "ids", "any")))
    other = replace(kernel, loops=[loop for loop in kernel.loops if not loop.finds_rows])
    assert kernels.violations([other], 0) == ["sm_90 fp32 ids gamma any: no loop found for careful path"]


def test_the_kernel_of_a_loss_that_nobody_counts_would_be_found(compiled: list[sass.Kernel]) -> None:
    kernel = next(k for k in compiled if (k.arch, k.identity) == ("sm_90", ("fp32", "ids", "any")))
    other = replace(kernel, name=kernel.name.replace("SigmoidFocal", "NewFocal"), loops=[])
    assert kernels.violations([other], 0) == [f"sm_90 {other.name}: of no loss that bench/sass.py knows"]


@pytest.mark.parametrize("dtype, targets", [("fp32", "ids or dense"), ("bf16", sass.PYRAMID)])
def test_a_dearer_loop_would_be_found(dtype: str, targets: str, compiled: list[sass.Kernel]) -> None:
    row = next(
        r
        for r in kernels.rows(compiled)
        if (r.arch, r.dtype, r.targets, r.gamma, r.flow) == ("sm_90", dtype, targets, "2", kernels.HOT)
    )
    row.loop.instructions["FFMA"] += 16 * 10
    try:
        assert any(f"sm_90 {dtype} {targets} gamma 2" in sentence for sentence in kernels.violations(compiled, 0))
    finally:
        row.loop.instructions["FFMA"] -= 16 * 10

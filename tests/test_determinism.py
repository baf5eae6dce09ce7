# Owns: results to the bit: any number of threads, any repetition, any route and layout; of every loss, rows and tables
# alike, AVX2 against AVX-512; the tolerances on every instruction set.
# Must not know: what the right results are (test_values.py).
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import focal_ext
import pytest
import softmax_table
import test_table
import torch
from cases import CASES, GAMMAS, PUBLIC, Case, build
from test_table import bits

pytestmark = pytest.mark.native
TESTS = Path(__file__).resolve().parent
LARGE = [case for case in (*CASES, *softmax_table.ROWS) if torch.Size(case.shape).numel() > 16384]
LEVELS = {
    "baseline": (),
    "x86-64-v3": ("avx2", "fma", "bmi2"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


def results(case: Case | softmax_table.Row) -> bytes:
    is_softmax = isinstance(case, softmax_table.Row)
    call, loss = (softmax_table.build(case), softmax_table.LOSS) if is_softmax else (build(case), case.loss)
    return b"".join(map(bits, call.run(PUBLIC, loss)))


def group(case: Case | softmax_table.Row) -> str:
    return softmax_table.LOSS if isinstance(case, softmax_table.Row) else case.loss


def digests() -> dict[str, str]:
    """A fingerprint of each loss's rows that need no power but of whole numbers, and of the tables."""
    cases = [case for case in LARGE if isinstance(case, Case) and all(e == int(e) for e in case.exponents)]
    parts: dict[str, list[bytes]] = {"tables": test_table.digested()}
    for case in (*cases, *softmax_table.ROWS):
        parts.setdefault(group(case), []).append(results(case))
    return {name: hashlib.sha256(b"".join(each)).hexdigest() for name, each in parts.items()}


def test_rows_of_every_loss_cross_chunks() -> None:
    assert {group(case) for case in LARGE} == {*focal_ext.reference.__all__}
    softmax = [row for row in LARGE if isinstance(row, softmax_table.Row)]
    assert len(softmax) > 20 and {row.targets.split()[0] for row in softmax} == {"ids", "dense"}


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_any_number_of_threads_gives_the_same_bits(case: Case) -> None:
    once = results(case)
    for threads in (2, 3, 4, 1):
        torch.set_num_threads(threads)
        assert results(case) == once, f"{threads} threads"
        assert results(case) == once, f"{threads} threads, repeated"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_gradient_beside_the_loss_is_the_recomputed_one(gamma: float, dtype: torch.dtype) -> None:
    x, ids = (torch.randn(700, 30) * 5).to(dtype).requires_grad_(), torch.randint(-2, 31, (700,))
    fused, recomputed = (
        torch.autograd.grad(focal_ext.sigmoid_focal_loss(x, ids, gamma=gamma, reduction=r).sum(), x)[0]
        for r in ("sum", "none")
    )
    assert bits(fused) == bits(recomputed)
    target = x.detach().clone().requires_grad_().clone()
    loss = focal_ext.sigmoid_focal_loss(target, ids, gamma=gamma, reduction="sum", overwrite_inputs=True)
    (overwritten,) = torch.autograd.grad(loss, target)
    assert bits(overwritten) == bits(fused)


def test_the_loss_is_the_same_with_and_without_a_gradient() -> None:
    x, ids = torch.randn(700, 30, requires_grad=True), torch.randint(-2, 31, (700,))
    for reduction in ("none", "sum", "mean"):
        with_gradient = focal_ext.sigmoid_focal_loss(x, ids, reduction=reduction)
        assert with_gradient.requires_grad and bits(with_gradient) == bits(
            focal_ext.sigmoid_focal_loss(x.detach(), ids, reduction=reduction)
        )


def levels_of_this_machine() -> list[str]:
    """The instruction sets that can run here, lowest first."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return [level for level, needed in LEVELS.items() if flags.issuperset(needed)]


def python_at(level: str, *arguments: str, **changes: str) -> str:
    """The output of a Python process whose kernels use the given level."""
    env = {
        **os.environ,
        **changes,
        "FOCAL_EXT_CPU_LEVEL": level,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
    }
    done = subprocess.run([sys.executable, *arguments], env=env, cwd=TESTS.parent, capture_output=True, text=True)
    assert done.returncode == 0, f"{level}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_avx2_and_avx512_give_the_same_bits() -> None:
    program = "import json, test_determinism; print(json.dumps(test_determinism.digests()))"
    used = focal_ext.build_info()["cpu_level"]
    found = [
        digests() if level == used else json.loads(python_at(level, "-c", program))
        for level in levels_of_this_machine()
        if level != "baseline"
    ]
    assert all(each == found[0] for each in found)


def test_the_highest_instruction_set_is_used_unless_the_environment_lowers_it() -> None:
    level = os.environ.get("FOCAL_EXT_CPU_LEVEL") or [*LEVELS, *levels_of_this_machine()][-1]
    assert focal_ext.build_info()["cpu_level"] == level


@pytest.mark.parametrize("level", levels_of_this_machine()[:-1])
def test_lower_instruction_sets_meet_the_same_tolerances_and_claims(level: str) -> None:
    """The highest one is what the rest of the suite runs on. What a level has of its own is arithmetic and reading of
    logits and ids: every third row asks for it."""
    names = ("values", "numerics", "extremes", "softmax_values", "softmax_extremes")
    program = (
        "import sys, focal_ext, pytest; assert focal_ext.build_info()['cpu_level'] == sys.argv[1]; "
        "sys.exit(pytest.main(sys.argv[2:]))"
    )
    options = ("-x", "-p", "no:cacheprovider", "-k", "not focal_ext.reference")
    modules = (str(TESTS / f"test_{name}.py") for name in names)
    python_at(level, "-c", program, level, *options, *modules, FOCAL_EXT_TEST_EVERY="3")

# Owns: results to the bit: any number of threads, any repetition, any route and layout, AVX2 against AVX-512.
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
import torch
from cases import CASES, GAMMAS, PUBLIC, Case, build
from torch import Tensor

pytestmark = pytest.mark.native
TESTS = Path(__file__).resolve().parent
LARGE = [case for case in CASES if torch.Size(case.shape).numel() > 16384]
LEVELS = {
    "baseline": (),
    "x86-64-v3": ("avx2", "fma", "bmi2"),
    "x86-64-v4": ("avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"),
}


def bits(result: Tensor) -> bytes:
    return result.detach().reshape(-1).view(torch.uint8).numpy().tobytes()


def results(case: Case) -> bytes:
    return b"".join(map(bits, build(case).run(PUBLIC, case.loss)))


def group(case: Case) -> str:
    whole = all(exponent == int(exponent) for exponent in case.exponents)
    return f"{case.loss}, {'whole' if whole else 'other'} exponents"


def digests() -> dict[str, str]:
    """Fingerprints of all large cases of each group; run in a subprocess for each instruction set."""
    return {
        name: hashlib.sha256(b"".join(results(case) for case in LARGE if group(case) == name)).hexdigest()
        for name in sorted(set(map(group, LARGE)))
    }


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


def test_avx2_and_avx512_give_the_same_bits_and_the_environment_lowers_the_level() -> None:
    program = (
        "import json, test_determinism as t; level = t.focal_ext.build_info()['cpu_level']; "
        "print(json.dumps([level, level != 'baseline' and t.digests()]))"
    )
    levels, found = levels_of_this_machine(), {}
    for level in levels:
        used, found[level] = json.loads(python_at(level, "-c", program))
        assert used == level
    for name in (name for name in found[levels[-1]] if "whole" in name):
        assert len({found[level][name] for level in levels if level != "baseline"}) <= 1, name
    assert focal_ext.build_info()["cpu_level"] == (
        os.environ.get("FOCAL_EXT_CPU_LEVEL") or [*LEVELS, *levels][-1 if levels else 0]
    )


@pytest.mark.parametrize("level", levels_of_this_machine()[:-1])
def test_lower_instruction_sets_meet_the_same_tolerances_and_claims(level: str) -> None:
    """The highest one is what the rest of the suite runs on. What a level has of its own is arithmetic and reading of
    logits and ids: every third row asks for it."""
    modules = [str(TESTS / name) for name in ("test_values.py", "test_numerics.py", "test_extremes.py")]
    python_at(
        level,
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        *modules,
        "-k",
        "not focal_ext.reference",
        FOCAL_EXT_TEST_EVERY="3",
    )

# Owns: what of `make gpu` can be checked without a GPU: the line it prints, what it would run, which file it would
# write.
# Must not know: the tests and the benchmark that it runs.
from __future__ import annotations

import os
import subprocess
import sys

from bench.gpu import ROOT, Gpu, commands, csv_of, why_not

H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-1", (9, 0))
T4, OLD = Gpu("Tesla T4", "GPU-2", (7, 5)), Gpu("Tesla P100-PCIE-16GB", "GPU-3", (6, 0))


def test_without_a_gpu_it_says_so_in_one_line_and_writes_nothing() -> None:
    before = sorted((ROOT / "bench").rglob("*.csv"))
    done = subprocess.run(
        [sys.executable, "-m", "bench.gpu"],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stdout.count("\n") == 1
    assert done.stdout.startswith("make gpu: no CUDA GPU") and sorted((ROOT / "bench").rglob("*.csv")) == before


def test_an_installation_that_cannot_be_tested_is_told_the_way_out() -> None:
    facts = {"cuda": "13.0", "archs": ["75", "80", "90", "120+PTX"], "reason_no_cuda": None}
    assert why_not([H100, T4], facts, 13000) is None
    assert "rm -f .venv/.native" in str(
        why_not([H100], {"cuda": None, "archs": [], "reason_no_cuda": "no nvcc was found"}, 13000)
    )
    assert "Update the driver" in str(why_not([H100], facts, 12080))
    assert "P100" in str(why_not([H100, OLD], facts, 13000))


def test_both_tiers_of_tests_run_first_and_every_kind_of_gpu_gets_one_file() -> None:
    (pytest, suite), (on_chip, same), (benchmark, everywhere) = commands([H100, H100], quick=False)
    assert pytest[-1] == "pytest" and suite == same == {"FOCAL_EXT_TEST_DEVICE": "cuda"}
    assert on_chip[-2:] == ["pytest", "tests/gpu"] and sorted((ROOT / on_chip[-1]).glob("test_*.py"))
    assert benchmark[-2:] == ["--csv", "bench/results/nvidia_h100_80gb_hbm3.csv"] and not everywhere
    chosen = {
        command[-1]: env["CUDA_VISIBLE_DEVICES"]
        for command, env in commands([H100, T4, H100._replace(uuid="GPU-9")], quick=True)[2:]
    }
    assert chosen == {"bench/results/nvidia_h100_80gb_hbm3.csv": "GPU-1", "bench/results/tesla_t4.csv": "GPU-2"}
    assert csv_of("NVIDIA A100-SXM4-40GB").name == "nvidia_a100_sxm4_40gb.csv"

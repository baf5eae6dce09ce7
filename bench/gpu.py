# Owns: what `make gpu` does on the day there is a GPU: the suite on device cuda, then one CSV of timings per kind of
# GPU.
# Must not know: what is tested (tests/), how is timed (bench/compare.py).
"""python -m bench.gpu [--quick]: without a CUDA GPU it says so in one line, writes nothing and exits 0."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

import focal_ext
from focal_ext import _cuda_devices
from focal_ext._torch_private import cuda_driver_version

ROOT = Path(__file__).resolve().parent.parent


class Gpu(NamedTuple):
    name: str
    uuid: str
    capability: tuple[int, int]


def gpus() -> list[Gpu]:
    """What torch can use here."""
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [Gpu(p.name, f"GPU-{p.uuid}", (p.major, p.minor)) for p in every]


def why_not(found: list[Gpu], facts: Mapping[str, Any], driver: int) -> str | None:
    """Why this installation cannot be tested on the GPUs that were found, with the way out; None if it can."""
    for gpu in found:
        reason = _cuda_devices.why_not(facts, driver, gpu.capability)
        if reason:
            return (
                f"make gpu: there is {gpu.name}, but {reason}; then: rm -f .venv/.native "
                "focal_ext/libfocal_ext.so; make gpu"
            )
    return None


def csv_of(name: str) -> Path:
    """NVIDIA H100 80GB HBM3 -> bench/results/nvidia_h100_80gb_hbm3.csv"""
    return ROOT / "bench/results" / (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") + ".csv")


def commands(found: list[Gpu], quick: bool) -> list[tuple[list[str], dict[str, str]]]:
    """What to run, each with its additions to the environment: correctness first, then one benchmark for each kind of
    GPU."""
    python = [sys.executable, "-m"]
    kinds = {gpu.name: gpu for gpu in reversed(found)}  # the first of each name
    suite = {"FOCAL_EXT_TEST_DEVICE": "cuda"}
    # a tier of its own: pytest alone does not enter it
    run = [
        ([*python, "pytest"], suite),
        ([*python, "pytest", "tests/gpu"], suite),
    ]
    for gpu in kinds.values():
        only = {"CUDA_VISIBLE_DEVICES": gpu.uuid} if len(kinds) > 1 else {}
        path = csv_of(gpu.name).relative_to(ROOT).as_posix()
        run.append(
            ([*python, "bench.compare", "--device", "cuda", *(["--quick"] if quick else []), "--csv", path], only)
        )
    return run


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="time only 201,600 x 80 logits in float32")
    options = parser.parse_args()
    found = gpus()
    if not found:
        print(f"make gpu: no CUDA GPU that torch {torch.__version__} can use; nothing was run or written")
        return 0
    reason = why_not(found, focal_ext.build_info(), cuda_driver_version())
    if reason:
        print(reason, file=sys.stderr)
        return 1
    for command, additions in commands(found, options.quick):
        print(" ".join([*(f"{key}={value}" for key, value in additions.items()), *command]), flush=True)
        code = subprocess.run(command, cwd=ROOT, env={**os.environ, **additions}, check=False).returncode
        if code:
            return code  # no timing of what is wrong
    return 0


if __name__ == "__main__":
    sys.exit(main())

# Owns: `python -m focal_ext`: it finds a wrong value, a wrong gradient and a loss that raises, and says what is
# missing.
# Must not know: formulas.
from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import focal_ext
import pytest
import torch
from focal_ext import __main__ as program
from focal_ext import _installation, _native, _self_check, losses
from torch import Tensor


class Scaled(torch.autograd.Function):
    """The value times one number, the gradient times another."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, value: float, gradient: float) -> Tensor:
        ctx.factor = gradient
        return x * value

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient * ctx.factor, None, None


def scaled(value: float, gradient: float) -> Callable[..., Tensor]:
    right = losses.varifocal_loss
    return lambda *args, **options: Scaled.apply(right(*args, **options), value, gradient)


def raising(*args: object, **options: object) -> Tensor:
    raise RuntimeError("no kernel image is available\nand more")


FAULTS = {
    "value": (scaled(1 + 1e-4, 1.0), ["WRONG: varifocal_loss, torch.float32"]),
    "value of nan": (
        scaled(float("nan"), 1.0),
        ["WRONG: varifocal_loss, torch.float64", "WRONG: varifocal_loss, torch.float16"],
    ),
    "gradient": (scaled(1.0, 1 + 1e-4), ["WRONG: varifocal_loss, torch.float32"]),
    "gradient of bf16 alone": (scaled(1.0, 1 - 2.0**-6), ["WRONG: varifocal_loss, torch.bfloat16"]),
    "no gradient": (scaled(1.0, 0.0), ["WRONG: varifocal_loss, torch.float64"]),
    "raises": (raising, ["WRONG: varifocal_loss, torch.float32: RuntimeError: no kernel image is available\n"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_and_the_exit_code_says_so(
    fault: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong, said = FAULTS[fault]
    monkeypatch.setattr(losses, "varifocal_loss", wrong)
    assert program.main(["--anchors", "0"]) == 1
    text = capsys.readouterr().out
    assert all(part in text for part in said) and "do not train with this installation" in text
    assert text.count("  WRONG: ") == text.count("  WRONG: varifocal_loss")


@pytest.mark.parametrize("asked", [{}, {"FOCAL_EXT_NATIVE": "0"}], ids=["as it is", "reference"])
def test_a_sound_installation_passes_and_its_report_has_what_a_bug_report_needs(asked: dict[str, str]) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "focal_ext", "--anchors", "500"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **asked},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    kernels = (
        f"fused, {focal_ext.build_info()['cpu_level']}"
        if _native.available and not asked
        else "none: plain PyTorch stands in"
    )
    for part in (
        focal_ext.__version__,
        kernels,
        torch.__version__,
        sys.version.split()[0],
        "OMP_NUM_THREADS=1",
        "driver",
        "500 x 80 float32",
        "All values are right.",
    ):
        assert part in run.stdout
    assert all(name in run.stdout for name in _self_check.TARGETS)
    assert ("FOCAL_EXT_NATIVE=0 in the environment" in run.stdout.replace("\n", " ")) is bool(
        asked or not _native.available
    )


def test_every_public_loss_of_logits_is_checked() -> None:
    public = {name for name in focal_ext.__all__ if "_loss" in name and not name.startswith("conv_")}
    assert {*public, _self_check.PYRAMID} == set(_self_check.TARGETS)


def test_what_is_missing_comes_with_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_installation, "NVIDIA", tmp_path / "none")
    assert _installation.advice() == []
    monkeypatch.setattr(torch.version, "cuda", "12.8")  # what PyPI serves to machines without a GPU as well
    assert _installation.advice() == []
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15\nGCC version\n")
    monkeypatch.setattr(_installation, "NVIDIA", driver)
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _installation.facts()["driver"] == "NVIDIA UNIX x86_64 Kernel Module  550.54.15"
    assert "this torch is built without CUDA" in _installation.advice()[0]
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "finds no GPU" in _installation.advice()[0]
    monkeypatch.setattr(_installation, "devices", lambda: [torch.device("cpu"), torch.device("cuda", 0)])
    monkeypatch.setattr(
        _native,
        "runs_on",
        lambda device: (
            warnings.warn("the driver is old", RuntimeWarning, stacklevel=1) if device.type == "cuda" else True
        ),
    )
    assert _installation.advice()[0] == "the driver is old"
    monkeypatch.setattr(_native, "available", False)
    monkeypatch.setattr(_native, "reason", "no compiler; install one")
    assert _installation.advice() == ["No fused kernels: no compiler; install one."]


def test_the_timed_call_shrinks_to_the_memory_of_the_machine_and_of_a_container(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = 16 * 4 * 80 * 201_600
    assert [_self_check.fitting(201_600, 80, free) for free in (whole, whole - 1, whole // 8, 0)] == [
        201_600,
        100_800,
        25_200,
        0,
    ]
    monkeypatch.setattr(_installation, "CGROUP", tmp_path)
    machine = _installation.free_bytes(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    assert _installation.free_bytes(torch.device("cpu")) == 1_000_000 < machine
    (tmp_path / "memory.max").write_text("max\n")
    assert _installation.free_bytes(torch.device("cpu")) > 1_000_000


def test_the_eager_formula_is_the_same_loss() -> None:
    x, ids = _self_check.draw(400, 80, 1.5, -6.0)
    want = focal_ext.sigmoid_focal_loss(x, ids, reduction="sum", normalizer="positives")
    assert float(_self_check.eager(x, ids)) == pytest.approx(float(want), rel=1e-5)


def test_importing_the_package_after_torch_imports_nothing_else() -> None:
    """What costs time at import is modules: torch's compiler alone would be a second."""
    program = (
        "import sys, torch\nbefore = set(sys.modules)\nimport focal_ext\nprint(*sorted(set(sys.modules) - before))"
    )
    imported = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in imported if name.split(".")[0] != "focal_ext"] == []
    assert not {
        "focal_ext.__main__",
        "focal_ext._self_check",
        "focal_ext._installation",
        "focal_ext.compat",
        "focal_ext.distributed",
    } & set(imported)


def test_a_timed_call_that_fails_does_not_end_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(_self_check, "compare", fail)
    assert program.timing(torch.device("cpu"), 10) == "  no time measured: RuntimeError: no kernel image"

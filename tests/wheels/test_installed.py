# Owns: the core table of cases over installed distributions, outside the source tree: every torch, another Python, without native code.
# Must not know: how the distributions are built.
from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from environments import CPU, CUDA, OLDEST, OTHER, ROOT, Environment, built, other_python, run

SUITE = ("test_values", "test_constants", "test_errors", "test_empty", "test_overwrite", "test_fallback")
FACTS = "import json, focal_ext; print(json.dumps([focal_ext.__file__, focal_ext.build_info()]))"


def passes_the_suite(environment: Environment, folder: Path, backend: str = "native", **changes: str) -> dict[str, object]:
    """Runs the core of the test-suite, copied to a folder of its own; returns build_info()."""
    tests = folder / "tests"
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__", "wheels", "kernels", "gpu", "cpp", "cuda_*"))
    modules = [f"{name}.py" for name in SUITE if name != "test_fallback" or backend == "native"]
    environment_variables = {**changes, "FOCAL_EXT_TEST_BACKEND": backend}
    output = run(environment.executable, "-m", "pytest", "-q", "-W", "error::RuntimeWarning", "-p", "no:cacheprovider", *modules, folder=tests, **environment_variables)
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 500 and "skipped" not in output, output[-3000:]
    place, info = json.loads(run(environment.executable, "-W", "ignore", "-c", FACTS, folder=folder, **changes))
    assert ROOT not in Path(place).parents or "site-packages" in Path(place).parts
    assert info["backend"] == backend and info["torch"].startswith(environment.torch)
    return info


@pytest.mark.parametrize("environment", [OLDEST, CPU, CUDA], ids=lambda e: e.name)
def test_the_wheel_works_with(environment: Environment, tmp_path: Path) -> None:
    environment.replace_focal_ext(built("*-manylinux*.whl"))
    passes_the_suite(environment, tmp_path)


@pytest.mark.parametrize("environment", [OTHER] if other_python() else [], ids=lambda e: f"{e.name} {e.python}")
def test_a_wheel_built_for(environment: Environment, tmp_path: Path) -> None:
    """The library is the same for every Python; what is compiled for one is the module of build facts."""
    environment.prepare()
    kernels = {"FOCAL_EXT_NATIVE": "1", "FOCAL_EXT_CUDA": "OFF"}
    run(environment.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, built("*.tar.gz"), **kernels)
    environment.replace_focal_ext(next(tmp_path.glob("*.whl")))
    passes_the_suite(environment, tmp_path)


def test_the_pure_wheel_works_through_the_reference(tmp_path: Path) -> None:
    CPU.prepare()
    run(CPU.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, built("*.tar.gz"), FOCAL_EXT_NATIVE="0")
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.name.endswith("-py3-none-any.whl")
    CPU.replace_focal_ext(wheel)
    info = passes_the_suite(CPU, tmp_path, backend="reference", FOCAL_EXT_NATIVE="0")
    assert "asks for the reference" in str(info["reason"])
    said = run(CPU.executable, "-c", "import focal_ext", folder=tmp_path)
    assert "RuntimeWarning" in said and "has no libfocal_ext.so" in said and "pip install" in said


def test_the_source_distribution_builds_and_installs_in_isolation(tmp_path: Path) -> None:
    CPU.prepare().install("--no-deps", "--force-reinstall", "--no-cache-dir", built("*.tar.gz"), FOCAL_EXT_NATIVE="1", FOCAL_EXT_CUDA="OFF")
    assert json.loads(run(CPU.executable, "-c", FACTS, folder=tmp_path))[1]["backend"] == "native"

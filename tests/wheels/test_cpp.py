# Owns: programs in C++ that use focal_ext as the wheel installed it: through find_package, and its headers alone.
# Must not know: losses.
from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from environments import CPU, ROOT, built, run

# The CUDA compiler and what it takes to see the example as CUDA, where it was found.
NVCC = [(nvcc, "-x", "cu", "-std=c++20", "-Werror=all-warnings")] if (nvcc := shutil.which("nvcc")) else []
COMPILERS = [("g++", "-std=c++20", "-Wall", "-Wextra", "-Werror"), *NVCC]
CMAKE = ROOT / ".venv/bin/cmake"


@pytest.fixture(scope="module")
def package() -> Path:
    return CPU.replace_focal_ext(built("*-manylinux*.whl")).package


def test_programs_find_the_package_and_agree_with_the_textbook(package: Path, tmp_path: Path) -> None:
    prefixes = f"-DCMAKE_PREFIX_PATH={package};{package.with_name('torch')}"
    run(CMAKE, "-S", ROOT / "tests/cpp", "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release", prefixes)
    run(CMAKE, "--build", tmp_path)
    output = run(CMAKE.with_name("ctest"), "--test-dir", tmp_path, "--output-on-failure")
    assert "100% tests passed" in output
    assert re.search(r"\d\d rows, 0 failures", run(tmp_path / "losses_with_torch"))


def test_the_package_can_be_moved_and_asked_for_by_version(package: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere/focal_ext"
    shutil.copytree(package, moved, ignore=shutil.ignore_patterns("__pycache__", "*.py"))
    project = tmp_path / "project"
    project.mkdir()
    lists = project / "CMakeLists.txt"
    ours = re.search(r"focal_ext-(\d+\.\d+)", built("*-manylinux*.whl").name)
    for version, problem in ((ours[1] if ours else "", None), ("99", "99")):
        lists.write_text(
            "cmake_minimum_required(VERSION 3.25)\nproject(p CXX)\nfind_package(focal_ext "
            f"{version})\nif(focal_ext_FOUND)\n"
            "  get_target_property(place focal_ext::focal_ext LOCATION)\n  message(STATUS place=${place})\nendif()\n"
        )
        output = run(CMAKE, "-S", project, "-B", tmp_path / f"build{version}", f"-DCMAKE_PREFIX_PATH={moved.parent}")
        assert ("place=" not in output and problem in output) if problem else f"place={moved}/libfocal_ext.so" in output


@pytest.mark.parametrize("compiler", COMPILERS, ids=lambda c: Path(c[0]).name)
def test_the_formulas_compile_without_torch(package: Path, compiler: tuple[str, ...], tmp_path: Path) -> None:
    example, program = ROOT / "examples/cpp/focal_loss.cpp", tmp_path / "focal_loss"
    assert len(example.read_text().splitlines()) <= 30
    run(*compiler, "-I", package / "include", example, "-o", program)
    if compiler in NVCC:
        return  # there may be no GPU to run it
    # -alpha (1 - p)^2 log(p) of a positive with p = 1/2, and its derivative; (1-alpha) p^2 (-log(1-p)) of negatives.
    numbers = [
        float(number) for row in re.findall(r"(\S+): loss (\S+), gradient (\S+)", run(program)) for number in row
    ]
    want = [
        0,
        0.0433216987850,
        -0.0745716987850,
        2,
        1.23755863457,
        0.807535297836,
        -5,
        2.25606766895e-7,
        6.73044574552e-7,
    ]
    assert numbers == pytest.approx(want, rel=1e-11)

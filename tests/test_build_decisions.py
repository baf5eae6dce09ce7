# Owns: what a build does with the compiler, tools and variables that it finds, and what it says. Compiles nothing.
# Must not know: where torch is looked for (test_torch_search.py), flags. Real builds: tests/wheels/test_builds.py.
from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from fake_machine import fake_torch, program

from native_build import run_cmake
from native_build.switches import why_pure

ROOT = Path(__file__).resolve().parents[1]


class Decision(NamedTuple):
    """Variables and programs of a machine, and the outcome: kernels, the pure package, or an error; with which
    words."""

    environ: dict[str, str]
    programs: tuple[str, ...]
    outcome: str
    words: tuple[str, ...] = ()


DECISIONS = {
    "a compiler": Decision({}, ("c++",), "kernels"),
    "g++ alone": Decision({}, ("g++",), "kernels"),
    "clang++ alone": Decision({}, ("clang++",), "kernels"),
    "a named compiler with an argument": Decision({"CXX": "mycc -m64"}, ("mycc",), "kernels"),
    "a named compiler that is not there": Decision(
        {"CXX": "mycc"}, ("c++",), "error", ("CXX=mycc", "no mycc", "FOCAL_EXT_NATIVE=0")
    ),
    "no compiler": Decision({}, (), "pure", ("no C++ compiler", "c++, g++, clang++")),
    "no compiler, kernels wanted": Decision(
        {"FOCAL_EXT_NATIVE": "1"}, (), "error", ("FOCAL_EXT_NATIVE=1, but no C++ compiler",)
    ),
    "no compiler, CUDA wanted": Decision(
        {"FOCAL_EXT_CUDA": "ON"}, (), "error", ("FOCAL_EXT_CUDA=ON, but no C++ compiler",)
    ),
    "pure wanted": Decision({"FOCAL_EXT_NATIVE": "0"}, ("c++",), "pure", ("FOCAL_EXT_NATIVE=0",)),
    "pure wanted, empty CUDA": Decision(
        {"FOCAL_EXT_NATIVE": "0", "FOCAL_EXT_CUDA": ""}, ("c++",), "pure", ("FOCAL_EXT_NATIVE=0",)
    ),
    "pure and CUDA wanted": Decision(
        {"FOCAL_EXT_NATIVE": "0", "FOCAL_EXT_CUDA": "ON"},
        ("c++",),
        "error",
        ("FOCAL_EXT_NATIVE=0", "FOCAL_EXT_CUDA=ON"),
    ),
    "NATIVE misspelt": Decision(
        {"FOCAL_EXT_NATIVE": "false"}, ("c++",), "error", ("FOCAL_EXT_NATIVE", "must be 0 (", "1 (", "'false'")
    ),
    "NATIVE in another case": Decision(
        {"FOCAL_EXT_NATIVE": "ON"}, ("c++",), "error", ("FOCAL_EXT_NATIVE", "must be 0 (", "'ON'")
    ),
    "CUDA misspelt": Decision(
        {"FOCAL_EXT_CUDA": "yes"}, ("c++",), "error", ("FOCAL_EXT_CUDA", "AUTO (", "ON (", "OFF (", "'yes'")
    ),
    "CUDA in another case": Decision({"FOCAL_EXT_CUDA": "off"}, ("c++",), "error", ("FOCAL_EXT_CUDA", "'off'")),
    "no jobs": Decision({"MAX_JOBS": "0"}, ("c++",), "error", ("MAX_JOBS", "1 or more", "'0'")),
    "jobs in words": Decision({"MAX_JOBS": "two"}, ("c++",), "error", ("MAX_JOBS", "'two'")),
    "four jobs": Decision({"MAX_JOBS": "4"}, ("c++",), "kernels"),
}


@pytest.mark.parametrize("name", DECISIONS)
def test_a_build_decides_by_compiler_and_variables(name: str, tmp_path: Path) -> None:
    row = DECISIONS[name]
    for each in row.programs:
        program(tmp_path / each)
    environ = {"PATH": str(tmp_path), **row.environ}
    if row.outcome == "error":
        with pytest.raises(SystemExit) as error:
            why_pure(environ)
        said = str(error.value)
    else:
        reason = why_pure(environ)
        said = str(reason)
        assert (reason is None) == (row.outcome == "kernels")
    assert all(word in said for word in row.words), said


def test_other_systems_get_the_pure_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(tmp_path / "c++")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "Linux only" in str(why_pure({"PATH": str(tmp_path)}))


@pytest.mark.parametrize(
    "programs, words",
    [
        ({"ninja": "", "cmake": "echo cmake version 3.25.1"}, None),
        ({"cmake": "echo cmake version 4.0.0"}, ("no ninja on the PATH", 'pip install "cmake>=3.25" ninja')),
        ({"ninja": ""}, ("no cmake on the PATH",)),
        ({}, ("no cmake and no ninja",)),
        ({"ninja": "", "cmake": "echo cmake version 3.22.1"}, ("CMake 3.22, 3.25 is needed", "pip install")),
        ({"ninja": "", "cmake": "echo no module named cmake >&2; exit 1"}, ("does not run: no module named cmake",)),
    ],
    ids=["both", "no ninja", "no cmake", "neither", "old cmake", "broken cmake"],
)
def test_a_missing_tool_is_named_with_the_way_out(
    programs: dict[str, str], words: tuple[str, ...] | None, tmp_path: Path
) -> None:
    for name, line in programs.items():
        program(tmp_path / name, line)
    if words is None:
        assert run_cmake.tools(str(tmp_path)) == (f"{tmp_path}/cmake", f"{tmp_path}/ninja")
        return
    with pytest.raises(SystemExit) as error:
        run_cmake.tools(str(tmp_path))
    assert all(word in str(error.value) for word in (*words, "FOCAL_EXT_NATIVE=0"))


def test_a_kept_build_folder_is_configured_anew_when_what_it_was_made_with_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    calls = tmp_path / "calls"
    program(
        tmp_path / "bin/cmake",
        '[ "$1" = --version ] && echo cmake version 3.25.1 && exit',
        f'echo "$@" >> {calls}',
        f"[ ! -e {tmp_path}/fails ]",
    )
    for name in ("ninja", "c++", "g++-99", "nvcc"):
        program(tmp_path / "bin" / name)
    torch = fake_torch(tmp_path / "torch", "2.13.0")
    monkeypatch.setattr(run_cmake, "BUILD", tmp_path / "build")
    monkeypatch.setattr(run_cmake.sysconfig, "get_path", lambda name: str(tmp_path / "bin"))
    for name in [name for name in os.environ if name in run_cmake.KEPT or name.startswith("CMAKE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FOCAL_EXT_TORCH_ROOT", str(torch))

    def is_fresh() -> bool:
        calls.unlink(missing_ok=True)
        run_cmake.build_library(tmp_path / "prefix", everything=True)
        configure, build, install = calls.read_text().splitlines()
        assert f"-DFOCAL_EXT_TORCH_ROOT={torch}" in configure and "--build" in build and "--component" not in install
        return "--fresh" in configure

    assert is_fresh() and not is_fresh()
    for change in (
        lambda: monkeypatch.setenv("CXX", "g++-99"),
        lambda: monkeypatch.setenv("CXXFLAGS", "-g"),
        lambda: monkeypatch.setenv("CUDACXX", str(tmp_path / "bin/c++")),
        lambda: monkeypatch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", "env"),
        lambda: os.utime(tmp_path / "bin/g++-99", ns=(1, 1)),  # updated under its name
        lambda: monkeypatch.setenv("CXX", "env g++-99"),
        lambda: os.utime(tmp_path / "bin/g++-99", ns=(2, 2)),  # behind a launcher
        lambda: fake_torch(torch, "2.14.1"),
        lambda: monkeypatch.setattr(run_cmake, "SOURCE", tmp_path),  # moved
    ):
        change()
        assert is_fresh() and not is_fresh()
    monkeypatch.delenv("CUDACXX")
    assert is_fresh()
    os.utime(tmp_path / "bin/nvcc", ns=(1, 1))
    assert is_fresh() and not is_fresh()

    (tmp_path / "fails").touch()
    with pytest.raises(SystemExit, match="configuring with CMake failed.*FOCAL_EXT_NATIVE=0"):
        is_fresh()
    (tmp_path / "fails").unlink()
    assert is_fresh() and not is_fresh()  # what a failed configuration left is not trusted


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What setup.py needs of the source tree."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in", "CMakeLists.txt"):
        shutil.copy(ROOT / name, folder)
    for name in ("csrc/configure", "focal_ext"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", "include", "share")
        )
    return folder


def setup(source: Path, *arguments: str, **variables: str) -> tuple[int, str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("FOCAL_EXT_", "PYTHON", "CXX"))}
    done = subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=source,
        env={**env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_build_that_cannot_have_kernels_ends_with_words_and_no_traceback(source: Path, tmp_path: Path) -> None:
    old = str(fake_torch(tmp_path / "torch", "2.9.1"))
    compiler = str(program(tmp_path / "bin/c++"))
    for variables, word in (
        ({"FOCAL_EXT_TORCH_ROOT": old, "CXX": compiler}, f"torch 2.9.1 in {old} is too old"),
        ({"FOCAL_EXT_NATIVE": "no"}, "FOCAL_EXT_NATIVE: at build time it must be"),
        ({"FOCAL_EXT_CUDA": "12"}, "FOCAL_EXT_CUDA: at build time it must be"),
    ):
        code, said = setup(source, "-q", "bdist_wheel", "-d", str(tmp_path), **variables)
        assert code == 1 and word in said and "Traceback" not in said and not list(tmp_path.glob("*.whl")), said
    # needs no torch
    code, said = setup(source, "-q", "sdist", "-d", str(tmp_path), FOCAL_EXT_TORCH_ROOT=old, CXX=compiler)
    assert code == 0 and list(tmp_path.glob("*.tar.gz")), said


def test_without_a_compiler_the_pure_package_is_built_and_holds_nothing_that_was_left_behind(
    source: Path, tmp_path: Path
) -> None:
    left = source / "build/lib/focal_ext/left_behind.py"
    left.parent.mkdir(parents=True)
    left.touch()
    code, said = setup(source, "-q", "bdist_wheel", "-d", str(tmp_path), PATH=str(tmp_path))
    (wheel,) = tmp_path.glob("*.whl")
    assert (
        code == 0
        and "building without native kernels: no C++ compiler" in said
        and wheel.name.endswith("-py3-none-any.whl")
    ), said
    names = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    assert "focal_ext/losses/sigmoid_focal.py" in names and "left_behind" not in names and "native_build" not in names


@pytest.mark.parametrize("version, missing", [("59.6.0", "59.6.0 of"), ("65.5.0", "needs the package wheel")])
def test_setuptools_that_cannot_build_the_package_is_named(
    version: str, missing: str, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "setuptools/command").mkdir(parents=True)
    (tmp_path / "setuptools/__init__.py").write_text(f"__version__ = '{version}'\n")
    for name in ("build", "build_ext"):
        (tmp_path / f"setuptools/command/{name}.py").write_text(f"class {name}: pass\n")
    (tmp_path / "wheel.py").touch()
    code, said = setup(source, "--version", PYTHONPATH=str(tmp_path))
    assert (
        code == 1
        and missing in said
        and sys.executable in said
        and "pip install 'setuptools" in said
        and "Traceback" not in said
    ), said

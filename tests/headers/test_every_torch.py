# Owns: that the library compiles against the headers of every torch it serves, and that one built with any of them runs
# in another.
# Must not know: where the headers come from (releases.py). Whole releases of torch are loaded in tests/wheels.
from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from built_package import ROOT, build_package, command, stub_libraries
from releases import NEWEST, OLDEST, RELEASES, torch_root

COMPILERS = tuple(filter(shutil.which, ("g++", "clang++")))
SOURCES = sorted(
    path.name
    for path in (ROOT / "csrc").glob("*.cpp")
    if re.search(r'#include "(tensors|arguments)\.h"', path.read_text())
)
TARGET = re.search(r"TORCH_TARGET_VERSION=\w+", (ROOT / "CMakeLists.txt").read_text())[0]
OPS = tuple(
    ("ops", compiler, release, source, cuda)
    for compiler in COMPILERS
    for release in RELEASES
    for source in SOURCES
    for cuda in ("CPU", "CUDA")
)
FOR_CPLUSPLUS = tuple(("torch.h", COMPILERS[0], release, "", "") for release in (OLDEST, NEWEST) if COMPILERS)
# The tests that call every op, over a library in another torch than it was built with.
SUITE = ("test_constants.py", "test_pyramid_errors.py", "test_softmax_errors.py", "test_native_loading.py")

Unit = tuple[str, str, str, str, str]


def compile_unit(unit: Unit, text: str | None = None) -> str:
    """What the compiler says of a source; `text` instead of the file's own. Code is generated: -fsyntax-only may leave
    templates alone."""
    what, compiler, release, source, cuda = unit
    include = torch_root(release) / "include"
    command = [
        compiler,
        "-std=c++20",
        "-O0",
        "-S",
        "-o",
        "/dev/null",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-isystem",
        str(include),
    ]
    if what == "torch.h":
        command += ["-I", str(ROOT / "include"), "-isystem", str(include / "torch/csrc/api/include")]
        text = (
            "#include <focal_ext/torch.h>\nat::Tensor f(at::Tensor x) { return focal_ext::sigmoid_focal_loss(x, x); }"
        )
    command += [f"-D{TARGET}"] * (what == "ops") + ["-DFOCAL_EXT_WITH_CUDA"] * (cuda == "CUDA")
    text = text or (ROOT / "csrc" / source).read_text()
    done = subprocess.run(
        [*command, "-I", str(ROOT / "csrc"), "-x", "c++", "-"], input=text, capture_output=True, text=True, check=False
    )
    return done.stderr if done.returncode else ""


@pytest.mark.parametrize("unit", [*OPS, *FOR_CPLUSPLUS], ids="-".join)
def test_it_compiles_with(unit: Unit) -> None:
    assert compile_unit(unit) == ""


def test_every_source_that_sees_torch_is_compiled() -> None:
    assert COMPILERS and "ops.cpp" in SOURCES


@pytest.mark.parametrize("release, compiles", [(OLDEST, False), ("2.12.1", False), ("2.13.0", True)])
def test_a_macro_that_older_headers_lack_is_seen(release: str, compiles: bool) -> None:
    """The call that once was in tensors.h, inside a template that the op instantiates."""
    call = "STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t, &d));"
    text = f"""#include "tensors.h"
template <class T> void f(T t) {{ int32_t d; {call} }}
template void f(AtenTensorHandle);"""
    assert (compile_unit(("ops", COMPILERS[0], release, SOURCES[0], "CPU"), text) == "") == compiles


@cache
def package(release: str) -> Path:
    """The package with a library built against one release's headers."""
    home = ROOT / "build/headers"
    stub_libraries(torch_root(release))
    return build_package(home / release, torch_root(release), "-O1", home / "cmake")


def wanted_symbols(release: str) -> set[str]:
    """What a library asks of the libraries it is loaded beside, without their versions."""
    listed = command("nm", "-D", "--undefined-only", package(release) / "focal_ext/libfocal_ext.so")
    return {line.split()[-1].split("@")[0] for line in listed.splitlines()}


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_a_library_asks_of_torch_what_the_oldest_declares(release: str) -> None:
    declared = "\n".join(path.read_text() for path in (torch_root(OLDEST) / "include/torch/csrc").rglob("*shim*.h"))
    wanted = wanted_symbols(release)
    of_torch = {name for name in wanted if name.startswith(("aoti_", "torch_"))}
    assert of_torch and not {name for name in of_torch if not re.search(rf"\b{name}\(", declared)}
    assert not {name for name in wanted if re.search(r"^_Z\w*(2at|3c10|5torch)", name)}, (
        "C++ symbols of torch change from release to release"
    )


@pytest.mark.parametrize("release", [OLDEST, NEWEST])
def test_a_library_built_with_these_headers_runs_in_the_torch_that_is_installed(release: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(package(release)), "OMP_NUM_THREADS": "1"}
    arguments = ("-m", "pytest", "-x", "-p", "no:cacheprovider", "-o", "pythonpath=", *SUITE)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT / "tests",
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) > 100, done.stdout[-4000:]

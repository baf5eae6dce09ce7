# Owns: importing the package without a usable native library: what is used instead, what is said, and that results stay
# right.
# Must not know: formulas.
from __future__ import annotations

import _ctypes
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import conftest
import focal_ext
import pytest
import torch

TESTS, PACKAGE = Path(__file__).resolve().parent, Path(focal_ext.__file__).resolve().parent
PROGRAM = """
import json, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import focal_ext
    import importlib; importlib.reload(focal_ext)
    import torch
    x = torch.linspace(-4, 4, 12).view(4, 3).requires_grad_()
    loss = focal_ext.sigmoid_focal_loss(x, torch.tensor([0, -1, -2, 3]), reduction="sum", normalizer="positives")
    loss.backward()
said = [[w.category.__name__, str(w.message)] for w in caught if "focal_ext" in str(w.message)]
print(json.dumps([focal_ext.__file__, focal_ext.build_info(), said, loss.item(), x.grad.flatten().tolist()]))
"""


class Install(NamedTuple):
    """A damaged installation: what happens to the package's copy, the environment, and what must be in use and said."""

    damage: Callable[[Path], object]
    environment: dict[str, str]
    backend: str
    warnings: int
    reason: tuple[str, ...]  # parts of the sentence: cause and remedy


def replace_library_by_another(package: Path) -> None:
    """A library that loads and has neither ops nor facts."""
    shutil.copy(_ctypes.__file__, package / "libfocal_ext.so")


def rename_an_op(package: Path) -> None:
    """As a library of another commit would name it."""
    library = package / "libfocal_ext.so"
    library.write_bytes(library.read_bytes().replace(b"first_bad_id(", b"first_bad_ib("))


def replace_library_by_one_that_needs_a_newer_torch(package: Path) -> None:
    """Its name for an entry point of torch becomes one that no torch has."""
    library = package / "libfocal_ext.so"
    library.write_bytes(library.read_bytes().replace(b"\0aoti_torch_empty_strided\0", b"\0aoti_torch_empty_stride2\0"))


def replace_library_by_one_for_another_processor(package: Path) -> None:
    """e_machine of the ELF header: 0xF3 is RISC-V."""
    library = package / "libfocal_ext.so"
    header = bytearray(library.read_bytes())
    header[18:20] = b"\xf3\0"
    library.write_bytes(header)


INSTALLS = {
    "whole": Install(lambda package: None, {}, "native", 0, ()),
    "switched off": Install(lambda package: None, {"FOCAL_EXT_NATIVE": "0"}, "reference", 0, ("FOCAL_EXT_NATIVE=0",)),
    "library missing": Install(
        lambda package: (package / "libfocal_ext.so").unlink(),
        {},
        "reference",
        1,
        ("has no libfocal_ext.so", "C++ compiler", "pip install"),
    ),
    "library corrupt": Install(
        lambda package: (package / "libfocal_ext.so").write_bytes(b"\x7fELF" + b"no library" * 99),
        {},
        "reference",
        1,
        ("does not load into torch", "pip install"),
    ),
    "library empty": Install(
        lambda package: (package / "libfocal_ext.so").write_bytes(b""),
        {},
        "reference",
        1,
        ("does not load into torch", "pip install"),
    ),
    "torch too old": Install(
        replace_library_by_one_that_needs_a_newer_torch,
        {},
        "reference",
        1,
        ("does not load into torch", "needs torch >= 2.10", "aoti_torch_empty_stride2", "pip install"),
    ),
    "library for another processor": Install(
        replace_library_by_one_for_another_processor,
        {},
        "reference",
        1,
        ("does not load into torch", "not for this processor", "pip install"),
    ),
    "library of another version": Install(
        replace_library_by_another, {}, "reference", 1, ("is of version unknown, the package of", "pip install")
    ),
    "library of another commit": Install(rename_an_op, {}, "reference", 1, ("has no op first_bad_id", "pip install")),
}


def python(*arguments: str, folder: Path = TESTS.parent, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("FOCAL_EXT_")}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**env, "OMP_NUM_THREADS": "1", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )


# Torch is imported once: a child for each installation has it.
CHILDREN = f"""
import json, os, sys, traceback, torch
for name, folder, environment in json.loads(sys.argv[1]):
    if os.fork() == 0:
        os.environ.update(environment)
        sys.path.insert(0, folder)
        print(name, end="\t")
        try:
            exec({PROGRAM!r})
        except BaseException:
            print(json.dumps(traceback.format_exc()))
        sys.stdout.flush()
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def said_by(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each installation printed, by its folder's name."""
    calls = []
    for name, install in INSTALLS.items():
        folder = tmp_path_factory.mktemp("install")
        shutil.copytree(PACKAGE, folder / "focal_ext", ignore=shutil.ignore_patterns("__pycache__"))
        install.damage(folder / "focal_ext")
        calls.append((name, str(folder), install.environment))
    done = python("-c", CHILDREN, json.dumps(calls), folder=tmp_path_factory.getbasetemp())
    assert done.returncode == 0, done.stderr
    printed = dict(line.split("\t") for line in done.stdout.splitlines())
    return {name: (Path(folder), json.loads(printed.get(name, "null"))) for name, folder, _ in calls}


@pytest.mark.native
@pytest.mark.parametrize("name", INSTALLS)
def test_a_damaged_installation_says_why_once_and_computes_the_same(name: str, said_by: dict[str, Any]) -> None:
    install, (folder, printed) = INSTALLS[name], said_by[name]
    assert isinstance(printed, list), printed or "the process ended"
    place, info, said, loss, gradient = printed
    assert Path(place).parent == folder / "focal_ext"
    assert info["backend"] == install.backend and (info["reason"] is None) == (install.backend == "native")
    assert all(part in info["reason"] for part in install.reason)
    assert [category for category, _ in said] == ["RuntimeWarning"] * install.warnings
    assert all(part in message for _, message in said for part in install.reason)

    x = torch.linspace(-4, 4, 12).view(4, 3).double().requires_grad_()
    want = focal_ext.reference.sigmoid_focal_loss(
        x, torch.tensor([0, -1, -2, 3]), reduction="sum", normalizer="positives"
    )
    assert loss == pytest.approx(want.item(), rel=1e-6)
    assert gradient == pytest.approx(torch.autograd.grad(want, x)[0].flatten().tolist(), rel=1e-5)


@pytest.mark.native
def test_sources_that_hide_the_installed_package_say_so(tmp_path: Path) -> None:
    """As python -m focal_ext finds them in a clone, after pip install . there."""
    clone, site = tmp_path / "clone", tmp_path / "site"
    for folder in (clone, site):
        shutil.copytree(PACKAGE, folder / "focal_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "focal_ext" / "libfocal_ext.so").unlink()
    (clone / "CMakeLists.txt").touch()
    said = "import focal_ext; print(focal_ext.build_info()['reason'])"
    hidden = python("-c", said, folder=clone, PYTHONPATH=str(site)).stdout
    assert f"sources in {clone / 'focal_ext'}" in hidden and f"installed in {site / 'focal_ext'}" in hidden
    assert "another folder" in hidden and "C++ compiler" not in hidden
    assert python("-c", said, folder=tmp_path, PYTHONPATH=str(site)).stdout == "None\n"


def test_the_package_needs_no_numpy() -> None:
    blocked = "import sys; sys.modules['numpy'] = None\n"
    wrong = "try: focal_ext.sigmoid_focal_loss(x, torch.tensor([0, -1, 9, 3]))\nexcept ValueError as e: print(e)"
    done = python("-W", "ignore", "-c", f"{blocked}{PROGRAM}{wrong}")
    assert done.returncode == 0 and "class id 9 at anchor 2" in done.stdout, done.stderr


def test_build_info_tells_all_that_is_in_use() -> None:
    info = focal_ext.build_info()
    assert set(info) == {"version", "backend", "reason", "cuda", "archs", "reason_no_cuda", "cpu_level", "torch"}
    assert info["version"] == focal_ext.__version__ and info["torch"] == torch.__version__
    assert (info["cuda"] is None) == (info["archs"] == []) == (info["reason_no_cuda"] is not None)
    assert (info["reason"] is None) == (info["backend"] == "native") == (info["cpu_level"] is not None)


def test_the_suite_fails_when_it_would_run_over_another_backend() -> None:
    arguments = ("-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(TESTS / "test_empty.py"))
    done = python(*arguments, FOCAL_EXT_TEST_BACKEND="native", FOCAL_EXT_NATIVE="0")
    assert done.returncode == 1 and "focal_ext is not under test" in done.stdout + done.stderr


def test_the_suite_knows_which_backend_it_runs_over(monkeypatch: pytest.MonkeyPatch) -> None:
    assert conftest.why_not_under_test() is None
    for wanted in ("nativ", {"native": "reference", "reference": "native"}[conftest.WANTED]):
        monkeypatch.setattr(conftest, "WANTED", wanted)
        assert wanted in conftest.why_not_under_test()


@pytest.mark.native
def test_an_installation_without_native_code_passes_the_suites_rules_too() -> None:
    modules = [
        str(TESTS / f"test_{name}.py")
        for name in ("errors", "empty", "constants", "overwrite", "transforms", "numerics")
    ]
    # focal_ext.reference by name is the same here as everywhere.
    done = python(
        "-m",
        "pytest",
        "-x",
        "-p",
        "no:cacheprovider",
        "-k",
        "not focal_ext.reference",
        *modules,
        FOCAL_EXT_NATIVE="0",
        FOCAL_EXT_TEST_BACKEND="reference",
        FOCAL_EXT_TEST_EVERY="4",
    )
    assert done.returncode == 0, done.stdout[-3000:]

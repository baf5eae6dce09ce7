# Owns: two copies of the package, or of its library, in one process: refused in words; one copy imported twice: taken.
# Must not know: what else the package finds wrong with its library (test_native_loading.py).
from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import focal_ext
import pytest

pytestmark = pytest.mark.native
HERE = Path(focal_ext.__file__).resolve().parents[1]
# Case -> what a child process does. `here` and `there` are folders with the package, `anew` forgets the modules and
# imports from a folder.
CASES = {
    "a second copy": "anew(here); anew(there)",
    "a library loaded by torch": "torch.ops.load_library(library(there)); anew(here)",
    "a library loaded by another program's linker": "ctypes.CDLL(library(there)); anew(here)",
    "its library replaced by an equal one": (
        "anew(there); shutil.copy(library(there), library(there) + '.new'); os.replace(library(there) + '.new', "
        "library(there)); anew(there); step()"
    ),
    "the same copy again": "anew(here); anew(here); step()",
    "the same copy through a link": "anew(here); anew(link); step()",
    "its own library loaded before": "torch.ops.load_library(library(here)); anew(here); step()",
    "a reload": "importlib.reload(anew(here)); importlib.reload(sys.modules['focal_ext._native']); step()",
    "the reference of a second copy": (
        "anew(here); os.environ['FOCAL_EXT_NATIVE'] = '0'; print(anew(there).build_info()['backend'])"
    ),
}
SCRIPT = """
import ctypes, importlib, os, shutil, sys
import torch
here, there, link = sys.argv[1:4]

def library(folder):
    return folder + "/focal_ext/libfocal_ext.so"

def anew(folder):
    for name in [name for name in sys.modules if name.split(".")[0] == "focal_ext"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    return importlib.import_module("focal_ext")

def step():
    x = torch.zeros(2, 3, requires_grad=True)
    import focal_ext
    focal_ext.sigmoid_focal_loss(x, torch.tensor([0, -1]), reduction="sum").backward()
    print(focal_ext.build_info()["backend"])

for case in sys.argv[4:]:
    child = os.fork()
    if child == 0:
        try:
            exec(case)
        except ImportError as error:
            print("ImportError", error)
        sys.stdout.flush()
        os._exit(0)
    print("ended with", os.waitpid(child, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    there, link = tmp_path_factory.mktemp("there"), tmp_path_factory.mktemp("link")
    shutil.copytree(HERE / "focal_ext", there / "focal_ext", ignore=shutil.ignore_patterns("__pycache__"))
    (link / "focal_ext").symlink_to(HERE / "focal_ext")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(HERE), str(there), str(link), *CASES.values()],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[1::2] == ["ended with 0"] * len(CASES), done.stdout + done.stderr
    return dict(zip(CASES, lines[::2], strict=True))


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("a ") and case != "a reload"])
def test_another_copy_is_refused_with_both_paths(case: str, outcomes: dict[str, str]) -> None:
    said = outcomes[case]
    assert (
        said.startswith("ImportError focal_ext: this process has loaded ")
        and said.count("/focal_ext/libfocal_ext.so") == 2
    ), said


@pytest.mark.parametrize(
    "case",
    [
        "the same copy again",
        "its library replaced by an equal one",
        "the same copy through a link",
        "its own library loaded before",
        "a reload",
    ],
)
def test_one_copy_may_be_imported_again(case: str, outcomes: dict[str, str]) -> None:
    assert outcomes[case] == "native"


def test_a_second_copy_may_be_the_reference(outcomes: dict[str, str]) -> None:
    assert outcomes["the reference of a second copy"] == "reference"

# Owns: in which environment a build finds torch, and what it says when none will do; nothing is built here.
# Must not know: compilers. Real builds: tests/wheels/test_builds.py.
from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from fake_machine import fake_torch, program

from native_build import torch_search
from native_build.torch_search import PARTS, search, torch_to_build_against


class Machine(NamedTuple):
    """Which torch each environment of a machine has, where the build was called, and which one is built against."""

    torch: dict[str, str]  # version by environment, in the folders below
    found: str | None  # the environment whose torch is taken
    words: tuple[str, ...] = ()  # of the places that were looked at
    active: str = ""  # the environment whose bin is first on the caller's PATH
    variables: dict[str, str] = {}  # noqa: RUF012  of the caller, {folder} is the machine's


# "own": of the interpreter that builds, as pip's isolation leaves it; "base": of the one that it was made from.
MACHINES = {
    "nothing has torch": Machine({}, None, ("own/bin/python: no torch", "base/bin/python: no torch")),
    "pip hides the torch of its interpreter": Machine({"own": "2.13.0+cpu"}, "own"),
    "an environment made with --system-site-packages": Machine({"base": "2.10.0"}, "base"),
    "uv, active environment": Machine({"active": "2.12.1"}, "active", active="active"),
    "uv, active environment before the project's": Machine(
        {"active": "2.12.1", "called/.venv": "2.13.0"}, "active", active="active"
    ),
    "uv, the project's environment before a python on the PATH": Machine(
        {"plain": "2.12.1", "called/.venv": "2.13.0"}, "called/.venv", active="plain"
    ),
    "uv, a python on the PATH": Machine({"plain": "2.12.1"}, "plain", active="plain"),
    "uv sync": Machine({"project": "2.12.1"}, "project", variables={"UV_PROJECT_ENVIRONMENT": "{folder}/project"}),
    "conda": Machine({"conda": "2.12.1"}, "conda", variables={"CONDA_PREFIX": "{folder}/conda"}),
    "pypa/build, called by an environment's interpreter": Machine({"maker": "2.12.1"}, "maker"),
    "too old is named, not stepped past": Machine(
        {"own": "2.9.1", "base": "2.13.0"}, None, ("torch 2.9.1 in", "own/torch is too old")
    ),
    "a version of a source build": Machine({"own": "2.15.0a0+gitabc"}, "own"),
    "major versions are numbers": Machine({"own": "10.0.0"}, "own"),
    "no torch package": Machine({"own": "unknown"}, None, ("no version.py of one",)),
    "torch without headers": Machine({"own": "2.13.0 bare"}, None, ("incomplete", PARTS[0])),
    "FOCAL_EXT_TORCH_ROOT alone counts": Machine(
        {"own": "2.13.0", "named": "2.9.0"},
        None,
        ("FOCAL_EXT_TORCH_ROOT", "2.9.0", "too old"),
        variables={"FOCAL_EXT_TORCH_ROOT": "{folder}/named/torch"},
    ),
    "FOCAL_EXT_TORCH_ROOT is first": Machine(
        {"own": "2.9.0", "named": "2.13.0"}, "named", variables={"FOCAL_EXT_TORCH_ROOT": "{folder}/named/torch"}
    ),
    "FOCAL_EXT_TORCH_ROOT names the folder above": Machine(
        {"named": "2.13.0"},
        None,
        ("not the folder of a torch package", "/named/torch is one"),
        variables={"FOCAL_EXT_TORCH_ROOT": "{folder}/named"},
    ),
    "FOCAL_EXT_TORCH_ROOT names nothing": Machine(
        {"own": "2.13.0"},
        None,
        ("FOCAL_EXT_TORCH_ROOT", "not the folder of a torch package"),
        variables={"FOCAL_EXT_TORCH_ROOT": "{folder}/nowhere"},
    ),
}


def environment(folder: Path, version: str | None, venv: bool = True) -> Path:
    """An interpreter that says where its torch is, unless pip's isolation hides it."""
    answer = f"{folder}/torch/__init__.py" if version else "None"
    if version:
        fake_torch(folder / "torch", version.split()[0], () if "bare" in version else PARTS)
    if venv:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pyvenv.cfg").touch()
    program(folder / "bin/python3", f'[ -z "$PYTHONPATH$PYTHONNOUSERSITE" ] && echo {answer} || echo None')
    return Path(shutil.copy(folder / "bin/python3", folder / "bin/python"))


@pytest.mark.parametrize("name", MACHINES)
def test_torch_is_found_in_the_environment_that_asked_for_the_build(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = MACHINES[name]
    pythons = {
        each: environment(tmp_path / each, machine.torch.get(each), venv=each != "plain")
        for each in ("own", "base", "active", "plain", "maker", "project", "conda", "named", "called/.venv")
    }
    (tmp_path / "own/pyvenv.cfg").write_text(
        f"home = /usr/bin\ncommand = {pythons['maker']} -m venv {tmp_path}\n"
        if "maker" in machine.torch
        else "home = /usr/bin\n"
    )
    monkeypatch.setattr(torch_search, "find_spec", lambda name: None)  # isolated
    monkeypatch.setattr(sys, "executable", str(pythons["own"]))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "own"))
    monkeypatch.setattr(sys, "_base_executable", str(pythons["base"]))
    (tmp_path / "called/deep").mkdir(parents=True, exist_ok=True)
    caller = {
        "PATH": f"{tmp_path}/own/bin:{tmp_path / machine.active / 'bin' if machine.active else ''}",
        "PWD": f"{tmp_path}/called/deep",
        "PYTHONPATH": "/of/pip",
        "PYTHONNOUSERSITE": "1",
    }
    found = search({**caller, **{key: value.format(folder=tmp_path) for key, value in machine.variables.items()}})

    looked_at = "\n".join(found.looked_at)
    assert found.torch == (tmp_path / machine.found / "torch" if machine.found else None), looked_at
    assert all(word in looked_at for word in machine.words), looked_at
    if found.torch:
        assert torch_to_build_against(found) == found.torch
        return
    with pytest.raises(SystemExit) as error:
        torch_to_build_against(found)
    said = str(error.value)
    assert all(f"  - {line}" in said for line in found.looked_at)
    assert all(
        way in said
        for way in (
            "pip install --no-build-isolation .",
            "uv pip install --no-build-isolation .",
            "FOCAL_EXT_TORCH_ROOT=",
            "FOCAL_EXT_NATIVE=0",
        )
    ), said


def test_the_torch_that_a_build_without_isolation_imports_is_asked_no_one_else_about(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch_search, "interpreters", lambda environ: pytest.fail("asked"))
    found = search({})
    assert found.torch == Path(torch.__file__).parent and found.version == torch.__version__


def test_an_interpreter_that_fails_hangs_or_prints_more_has_no_torch(tmp_path: Path) -> None:
    answers = [
        program(tmp_path / str(i), *lines)
        for i, lines in enumerate(
            (["exit 3"], ["echo /x/torch/__init__.py; exit 1"], [], ["echo a warning", "echo /x/torch/__init__.py"])
        )
    ]
    assert [torch_search.asked(each, {}) for each in answers] == [None, None, None, Path("/x/torch")]
    assert torch_search.asked(tmp_path / "nothing", {}) is None

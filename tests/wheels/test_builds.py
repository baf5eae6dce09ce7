# Owns: the source distribution, built by the tools and in the environments that people have: kernels, or a clear error.
# Must not know: losses. Decisions in which nothing is compiled: tests/test_build_decisions.py.
from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
from environments import CPU, HOME, UNOPTIMIZED, built, clean, run
from test_files import dynamic

UV = HOME / "bin/uv"
TORCH = CPU.prepare().package.with_name("torch")  # of the wheel that others are built beside


WITHOUT_CUDA = {"FOCAL_EXT_CUDA": "OFF", **UNOPTIMIZED}


class Site(NamedTuple):
    """The source; an environment that has torch; one that sees it in the user's packages alone."""

    source: Path
    beside: Path
    system: Path
    variables: dict[str, str]  # that show the user's packages to `system`


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    folder = tmp_path_factory.mktemp("site")
    with tarfile.open(built("*.tar.gz")) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.glob("focal_ext-*")
    left = source / f"build/lib.{sys.platform}-x86_64-{sys.implementation.cache_tag}/focal_ext/left_behind.py"
    left.parent.mkdir(parents=True)
    left.touch()
    packages = f"lib/python3.{sys.version_info.minor}/site-packages"
    for name, options in (("beside", ()), ("system", ("--system-site-packages",))):
        run(sys.executable, "-m", "venv", *options, folder / name)
    linked = folder / "linked"  # as of an environment that is a link to another disk
    linked.symlink_to(TORCH.resolve().parent)
    for place in (folder / "beside" / packages, folder / "user" / packages):
        place.mkdir(parents=True, exist_ok=True)
        (place / "torch_of_another_place.pth").write_text(f"{linked}\n")
    return Site(source, folder / "beside", folder / "system", {"PYTHONUSERBASE": str(folder / "user")})


def pip_wheel(site: Site, environment: Path, out: Path, *options: str, **variables: str) -> str:
    return run(
        environment / "bin/python",
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        *options,
        "-w",
        out,
        site.source,
        folder=out,
        **WITHOUT_CUDA,
        **variables,
    )


def uv_build(site: Site, out: Path, *options: object, folder: Path | None = None, **variables: str) -> str:
    return run(
        UV,
        "build",
        "-q",
        "--wheel",
        *options,
        "-o",
        out,
        site.source,
        folder=folder or out,
        **WITHOUT_CUDA,
        **variables,
    )


def active(environment: Path) -> dict[str, str]:
    return {"PATH": f"{environment}/bin:{os.environ['PATH']}"}


def with_uv_in_a_project(site: Site, out: Path) -> None:
    """uv finds the .venv of the folder that it is called in."""
    (out / "project").mkdir()
    (out / "project/.venv").symlink_to(site.beside)
    uv_build(site, out, folder=out / "project", PWD=str(out / "project"))


def without_isolation(site: Site, out: Path) -> None:
    """With the setuptools that environments of Python 3.10 and 3.11 are made with."""
    run(
        UV,
        "pip",
        "install",
        "-q",
        "--python",
        site.beside / "bin/python",
        "setuptools==65.5.0",
        "wheel",
        "cmake",
        "ninja",
    )
    pip_wheel(site, site.beside, out, "--no-build-isolation")


# The first one compiles, the others take what it left: their CMake is another, their torch the same.
WAYS = {
    "pip": lambda site, out: pip_wheel(site, site.beside, out),
    "pip, torch in the user's packages": lambda site, out: pip_wheel(site, site.system, out, **site.variables),
    "pip, no isolation, old setuptools": without_isolation,
    "uv, environment named": lambda site, out: uv_build(
        site, out, "--python", site.system / "bin/python", **site.variables
    ),
    "uv, environment active": lambda site, out: uv_build(site, out, **active(site.beside)),
    "uv, environment of the project": with_uv_in_a_project,
    "pypa/build": lambda site, out: run(
        HOME / "bin/python",
        "-m",
        "build",
        "-q",
        "-w",
        "-o",
        out,
        site.source,
        **WITHOUT_CUDA,
        **active(site.beside),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_build_has_kernels_serves_every_python_and_tells_nothing_of_the_builder(
    way: str, site: Site, tmp_path: Path
) -> None:
    WAYS[way](site, tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "wheel")
        metadata = archive.read(next(name for name in archive.namelist() if name.endswith("/METADATA"))).decode()
        assert not any("left_behind" in name for name in archive.namelist())
    assert (
        re.search(r"^License(-Expression)?: BSD-3-Clause$", metadata, re.MULTILINE)
        and "Requires-Dist: torch>=2.6" in metadata
    )
    assert re.findall("^Requires-Dist: (.*)", metadata, re.MULTILINE) == ["torch>=2.6"]
    library = tmp_path / "wheel/focal_ext/libfocal_ext.so"
    assert not dynamic(library, "RUNPATH") and not dynamic(library, "RPATH")
    found = [
        path
        for path in (site.source, TORCH.resolve().parent, Path.home(), "/tmp/")
        if str(path).encode() in library.read_bytes()
    ]
    assert not found


def test_what_was_built_runs_where_torch_is_in_the_users_packages(site: Site, tmp_path: Path) -> None:
    pip_wheel(site, site.system, tmp_path, **site.variables)
    python = site.system / "bin/python"
    run(
        python,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--force-reinstall",
        next(tmp_path.glob("*.whl")),
        **site.variables,
    )
    said = run(
        python, "-c", "import focal_ext; print(focal_ext.build_info()['backend'])", folder=tmp_path, **site.variables
    )
    assert said == "native\n"  # no warning either


def test_uv_names_a_torch_that_is_too_old_and_the_ways_out(site: Site, tmp_path: Path) -> None:
    environment = tmp_path / "old"
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    torch = environment / f"lib/python3.{sys.version_info.minor}/site-packages/torch"
    torch.mkdir()
    (torch / "__init__.py").touch()
    (torch / "version.py").write_text("__version__ = '2.9.1'\n")
    command = [str(UV), "pip", "install", "--no-deps", str(site.source)]
    done = subprocess.run(
        command,
        env=clean(**active(environment), VIRTUAL_ENV=str(environment)),
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    words = (
        "".join(text.split())
        for text in (f"torch 2.9.1 in {torch} is too old", "uv pip install --no-build-isolation .")
    )
    said = "".join(done.stderr.split())  # uv breaks lines, within a path too
    assert done.returncode != 0 and all(word in said for word in words), done.stderr

# Owns: what is in the wheel's file: name, size, contents, what its libraries need, that no folder of the builder is in
# it, and that a build of the same commit in another folder gives the same bytes.
# Must not know: losses.
from __future__ import annotations

import os
import platform
import re
import subprocess
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.sass import tool
from environments import HOME, ROOT, UNOPTIMIZED, built, run

LARGEST_LIBRARY = 12e6  # bytes
# Of the wheel's libraries; everything else would have to be on every user's machine.
NEEDED = {
    "libtorch.so",
    "libtorch_cpu.so",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libc.so.6",
    "libm.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "libpthread.so.0",
    "libdl.so.2",
    "librt.so.1",
}
HEADERS = ("torch.h", "losses/primitives.h", "losses/sigmoid_focal.h")


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    zipfile.ZipFile(built("*-manylinux*.whl")).extractall(folder)
    return folder


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def dynamic(library: Path, tag: str) -> list[str]:
    """Values of a tag of the library's dynamic section."""
    output = subprocess.run(["readelf", "-d", str(library)], capture_output=True, text=True, check=True).stdout
    return re.findall(rf"\({tag}\).*\[(.*)\]", output)


def test_the_tag_promises_no_older_system_than_was_checked_and_no_newer_than_this() -> None:
    tag = re.search(r"-py3-none-manylinux_2_(\d+)_\w+\.whl$", built("*-manylinux*.whl").name)
    assert tag and int(tag[1]) <= int(platform.libc_ver()[1].split(".")[1])
    output = run(HOME / "bin/python", "-m", "auditwheel", "show", built("*-manylinux*.whl"))
    assert f"manylinux_2_{tag[1]}_" in output


def test_the_wheel_holds_the_package_one_library_and_what_cpp_programs_need(unpacked: Path) -> None:
    names = {
        path.relative_to(unpacked / "focal_ext").as_posix()
        for path in (unpacked / "focal_ext").rglob("*")
        if path.is_file()
    }
    sources = {path.relative_to(ROOT / "focal_ext").as_posix() for path in (ROOT / "focal_ext").rglob("*.py")}
    headers = {f"include/focal_ext/{header}" for header in HEADERS}
    config = {f"share/cmake/focal_ext/focal_extConfig{part}.cmake" for part in ("", "-release", "Version")}
    assert sources | headers | config | {"libfocal_ext.so", "py.typed"} <= names
    assert [library.name for library in libraries(unpacked)] == ["libfocal_ext.so"]
    assert not any("test" in name or name.endswith((".cu", ".cpp", ".o")) for name in names)
    assert list(unpacked.glob("*.dist-info/licenses/LICENSE"))


def test_the_library_is_small_and_needs_nothing_that_torch_or_the_system_does_not_bring(unpacked: Path) -> None:
    assert (unpacked / "focal_ext/libfocal_ext.so").stat().st_size < LARGEST_LIBRARY
    for library in libraries(unpacked):
        assert set(dynamic(library, "NEEDED")) <= NEEDED, library.name
        assert not dynamic(library, "RUNPATH") and not dynamic(library, "RPATH"), library.name


def test_no_folder_of_the_builder_is_in_any_file(unpacked: Path) -> None:
    folders = [str(ROOT), str(Path.home()), "/tmp/", os.environ.get("TMPDIR", "/tmp/"), "/build/"]
    files = [path for path in unpacked.rglob("*") if path.is_file() and path.suffix in (".so", ".cmake", ".h", "")]
    found = [f"{path.name}: {folder}" for path in files for folder in folders if folder.encode() in path.read_bytes()]
    assert len(files) > 5 and not found


def test_no_digest_of_the_builders_folder_is_in_the_cuda_images(unpacked: Path, tmp_path: Path) -> None:
    """nvcc names a function that is not inlined, of those that only one source file sees, by that file's folder."""
    try:
        cuobjdump = tool("cuobjdump")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    library = unpacked / "focal_ext/libfocal_ext.so"
    subprocess.run([cuobjdump, "-xelf", "all", "-xptx", "all", str(library)], cwd=tmp_path, capture_output=True)
    images = list(tmp_path.iterdir())
    assert bool(images) == (b".nv_fatbin" in library.read_bytes())
    found = [path.name for path in images if re.search(rb"_(INTERNAL_|GLOBAL__N__)[0-9a-f]{8}", path.read_bytes())]
    assert not found


def test_the_same_commit_built_in_another_folder_gives_the_same_bytes(tmp_path: Path) -> None:
    """Every source file is compiled, in a fifth of the time: the CUDA kernels, where nvcc is, for one architecture, the
    rest unoptimized. Below -O2 cicc inlines too little: see the digests above."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    def wheel(folder: Path) -> Path:
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((ROOT / name).read_bytes())
        for shared in (".venv", ".venv-wheels"):
            (folder / shared).symlink_to(ROOT / shared)
        run(
            "make",
            "wheel",
            folder=folder,
            TORCH_CUDA_ARCH_LIST="9.0",
            SOURCE_DATE_EPOCH="1700000000",
            MAX_JOBS="1",
            NVCC_APPEND_FLAGS="-Xcicc -O2",
            **UNOPTIMIZED,  # stripped too: nvcc names each temporary file by the process
        )
        return next((folder / "dist").glob("*.whl"))

    with ThreadPoolExecutor(2) as pool:  # each step of a build that takes one core beside a step of the other
        wheels = list(pool.map(wheel, (tmp_path / "one", tmp_path / "another/folder")))
    assert wheels[0].name == wheels[1].name and wheels[0].read_bytes() == wheels[1].read_bytes()

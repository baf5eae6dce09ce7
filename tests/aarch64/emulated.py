# Owns: the library's ops by the CPU kernels of aarch64: cross-compiled with the product's own flags, run by qemu in a
# process of their own.
# Must not know: formulas, autograd, what the right results are.
from __future__ import annotations

import ctypes
import operator
import re
import shutil
import struct
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from built_package import CMAKE, ROOT, command, configure, stub_libraries
from cuda_host.ops import SCALARS, HostOps, accumulation, target_kind
from filelock import FileLock
from torch import Tensor

COMPILER, EMULATOR, OBJDUMP, NM = (
    "aarch64-linux-gnu-g++",
    "qemu-aarch64",
    "aarch64-linux-gnu-objdump",
    "aarch64-linux-gnu-nm",
)
HOME = ROOT / "build/aarch64"
ALIGNMENT, UNTOUCHED = 64, b"\xa5"

Fields = dict[str, Any]


def why_impossible() -> str | None:
    missing = [name for name in (COMPILER, EMULATOR, OBJDUMP) if shutil.which(name) is None]
    return f"no {' and no '.join(missing)}; Debian has them in g++-aarch64-linux-gnu and qemu-user" if missing else None


@cache
def library() -> Path:
    """libfocal_ext.so for aarch64 as CMakeLists.txt builds it, against the headers of the torch that is installed."""
    assert why_impossible() is None, f"the kernels of aarch64 cannot be built here: {why_impossible()}"
    torch_root, headers = HOME / "torch", Path(torch.__file__).parent / "include"
    torch_root.mkdir(parents=True, exist_ok=True)
    if not (torch_root / "include").exists():
        (torch_root / "include").symlink_to(headers)
    target = (
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_BUILD_TYPE=Release",
    )
    with FileLock(HOME / "lock"):  # a process that comes later finds nothing to compile
        stub_libraries(torch_root, COMPILER)
        configure(HOME / "cmake", torch_root, "", *target)
        command(CMAKE, "--build", HOME / "cmake")
    return HOME / "cmake/libfocal_ext.so"


def kernel_objects() -> list[Path]:
    return sorted((library().parent / "CMakeFiles/kernels_baseline.dir").rglob("*.o"))


@cache
def program() -> Path:
    """The library's own objects under a main()."""
    objects = [*kernel_objects(), *(library().parent / "CMakeFiles/focal_ext.dir").rglob("run.cpp.o")]
    with FileLock(HOME / "lock"):
        command(
            COMPILER,
            "-std=c++20",
            "-O1",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-static",
            "-I",
            ROOT / "csrc",
            Path(__file__).with_name("kernels.cpp"),
            *objects,
            "-o",
            HOME / "kernels",
        )
    return HOME / "kernels"


class Memory:
    """Tensors after each other, each at its own address modulo the alignment, with bytes between that nobody may
    write."""

    def __init__(self) -> None:
        self.bytes, self.places = bytearray(), dict[tuple[int, int], int]()

    def place(self, tensor: Tensor) -> int:
        address, size = tensor.data_ptr(), tensor.numel() * tensor.itemsize
        if (address, size) not in self.places:
            self.bytes += UNTOUCHED * ((address - len(self.bytes)) % ALIGNMENT)
            self.places[address, size] = len(self.bytes)
            self.bytes += ctypes.string_at(address, size) if size else b""
            self.bytes += UNTOUCHED * ALIGNMENT
        return self.places[address, size]

    def take(self, written: bytes, results: Sequence[Tensor]) -> None:
        """The results out of what came back; all else must be as it was."""
        after, expected = memoryview(written), bytearray(self.bytes)
        for tensor in results:
            first, size = self.place(tensor), tensor.numel() * tensor.itemsize
            expected[first : first + size] = after[first : first + size]
            if size:
                ctypes.memmove(tensor.data_ptr(), written[first : first + size], size)
        assert expected == written, "bytes were written that are no result's"


RESULTS = ("loss", "loss_map", "gradient")


class EmulatedOps(HostOps):
    def __init__(self) -> None:
        self.process = subprocess.Popen([EMULATOR, program()], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.calls = 0

    def close(self) -> None:
        self.process.stdin.close()
        assert self.process.wait() == 0

    def launch(self, fields: Fields, levels: Sequence[Fields] | None = None) -> None:
        self.ask("run" if levels is None else "run_pyramid", fields, levels or ())

    def ask(self, what: str, fields: Fields, levels: Sequence[Fields] = ()) -> int:
        memory, self.calls = Memory(), self.calls + 1
        lines = "".join(lines_of(memory, each) for each in (fields, *levels))
        self.process.stdin.write(f"{what} {len(memory.bytes)} {len(levels)}\n{lines}".encode() + memory.bytes)
        self.process.stdin.flush()
        answer = self.process.stdout.read(8)
        assert len(answer) == 8, f"the program ended with {self.process.wait()}"
        memory.take(
            self.process.stdout.read(len(memory.bytes)),
            [each[name] for each in (fields, *levels) for name in RESULTS if name in each],
        )
        return struct.unpack("<q", answer)[0]

    def scale_(self, gradient: Tensor, factor: Tensor) -> None:
        assert gradient.is_contiguous() and factor.dtype == accumulation(gradient)
        self.ask(
            "scale",
            {
                "gradient": gradient,
                "scalar": SCALARS.index(gradient.dtype),
                "numel": gradient.numel(),
                "factor": factor,
                "groups": factor.numel(),
            },
        )

    def first_bad_id(self, targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> int:
        ids = targets.contiguous()
        fields = {
            "targets": ids,
            "target": target_kind(ids[..., None], ids),
            "rows": ids.numel(),
            "classes": classes,
            "background": background,
        }
        return self.ask(
            "first_bad_id", fields | {"has_ignore_index": ignore_index is not None, "ignore_index": ignore_index or 0}
        )


def lines_of(memory: Memory, fields: Fields) -> str:
    def said(value: Any) -> str:
        if isinstance(value, Tensor):
            return str(memory.place(value))
        return value.hex() if isinstance(value, float) else str(operator.index(value))

    return f"{len(fields)}\n" + "".join(f"{name} {said(value)}\n" for name, value in fields.items())


@cache
def functions() -> dict[str, str]:
    """The instructions of the kernels' functions by name."""
    listed = "".join(command(OBJDUMP, "-d", "--no-show-raw-insn", "-C", each) for each in kernel_objects())
    return {found[1]: found[2] for found in re.finditer(r"^[0-9a-f]{16} <(.+)>:\n((?:.+\n)+)", listed, re.MULTILINE)}

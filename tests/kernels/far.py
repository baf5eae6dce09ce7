# Owns: tensors far larger than memory, of which only chosen parts exist: touching any other part ends the process.
# Must not know: kernels.
from __future__ import annotations

import ctypes
import mmap

import torch
from torch import Tensor

PROT_NONE, MAP_NORESERVE = 0, 0x4000
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class Reserved:
    """Address space for `shape`; `open` backs a range of the first dimension with zeros."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.row_bytes = torch.Size(shape[1:]).numel() * dtype.itemsize
        self.bytes = shape[0] * self.row_bytes
        self.address = libc.mmap(
            None, self.bytes, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE, -1, 0
        )
        assert self.address != ctypes.c_void_p(-1).value, f"no address space for {self.bytes} bytes"
        self.tensor = torch.frombuffer((ctypes.c_char * self.bytes).from_address(self.address), dtype=dtype).view(shape)

    def open(self, start: int, stop: int) -> Tensor:
        first = start * self.row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        done = libc.mprotect(self.address + first, stop * self.row_bytes - first, mmap.PROT_READ | mmap.PROT_WRITE)
        assert done == 0, ctypes.get_errno()
        return self.tensor[start:stop]

    def close(self) -> None:
        libc.munmap(self.address, self.bytes)

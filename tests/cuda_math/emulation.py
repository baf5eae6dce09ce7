# Owns: emulation.cpp as a Python object: compiled with some flags, called with arrays.
# Must not know: what the results should be.
from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCE = Path(__file__).with_name("emulation.cpp")
COMPILER = os.environ.get("CXX", "c++")
POLICIES = ("careful", "rescue", "single", "half", "packed_single", "packed_half")  # as emulation.cpp numbers them
STREAMS = POLICIES[2:]


def why_impossible() -> str | None:
    return None if shutil.which(COMPILER) else f"needs a C++ compiler, there is no {COMPILER}"


class Errors(ctypes.Structure):
    _fields_ = [
        ("bounds", ctypes.c_float),
        ("signs", ctypes.c_uint32),
        ("random", ctypes.c_uint64),
        ("one_is_exact", ctypes.c_uint32),
        ("unused", ctypes.c_uint32 * 2),
    ]


class LossParameters(ctypes.Structure):
    """As csrc/losses/parameters.h has them."""

    _fields_ = [("loss", ctypes.c_int), ("numbers", ctypes.c_double * 4), ("is_per_row", ctypes.c_bool)]

    def __init__(self, loss: int, *numbers: float) -> None:
        super().__init__(loss, (ctypes.c_double * 4)(*numbers))


def sigmoid_focal(gamma: float, smoothing: float = 0.0) -> LossParameters:
    return LossParameters(0, gamma, smoothing, 1.0)


class Arrays(ctypes.Structure):
    _fields_ = [
        ("count", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("logits", "targets", "value", "gradient")),
    ]


class Results(NamedTuple):
    value: np.ndarray
    gradient: np.ndarray


class Emulation:
    """emulation.cpp, compiled with some flags."""

    def __init__(self, folder: Path, *flags: str) -> None:
        library = folder / f"emulation{'_'.join(flags)}.so"
        command = [
            COMPILER,
            "-std=c++20",
            "-O2",
            "-march=native",
            "-ffp-contract=off",
            "-shared",
            "-fPIC",
            *flags,
            str(SOURCE),
            "-o",
            str(library),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.evaluate = ctypes.CDLL(str(library)).evaluate
        self.evaluate.argtypes = (ctypes.c_int, *map(ctypes.POINTER, (LossParameters, Errors, Arrays)))

    def run(
        self, policy: str, loss: float | LossParameters, x: np.ndarray, errors: Errors, t: np.ndarray | None = None
    ) -> Results:
        """`loss`: or the gamma of the sigmoid focal loss."""
        parameters = loss if isinstance(loss, LossParameters) else sigmoid_focal(loss)
        results = Results(np.empty_like(x), np.empty_like(x))
        addresses = [None if a is None else a.ctypes.data for a in (x, t, *results)]
        self.evaluate(POLICIES.index(policy), *map(ctypes.byref, (parameters, errors, Arrays(len(x), *addresses))))
        return results

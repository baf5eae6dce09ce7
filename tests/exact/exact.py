# Owns: exact.cpp as a Python object: compiled, told about a curve, called with tensors.
# Must not know: which logits are looked at, how large an error may be.
from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import torch
from curves import EDGES, Curve, Errors
from formulas import Closed
from torch import Tensor

SOURCE = Path(__file__).with_name("exact.cpp")
COMPILER = os.environ.get("CXX", "c++")
WIDE = ["-mprefer-vector-width=512"] if platform.machine() == "x86_64" else []
FLAGS = [
    "-std=c++20",
    "-O3",
    "-march=native",
    *WIDE,
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fopenmp-simd",
    "-shared",
    "-fPIC",
]
SOFT, QUALITY, SHIFTED, MEAN = range(4)  # as exact.cpp numbers them


def why_impossible() -> str | None:
    return None if shutil.which(COMPILER) else f"needs a C++ compiler, there is no {COMPILER}"


class Description(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int32) for name in ("form", "cancels")),
        *(
            (name, ctypes.c_double)
            for name in ("target", "exponent", "smoothing", "clip", "slope", "lost", "factor", "slack")
        ),
        ("edges", ctypes.c_double * len(EDGES)),
    ]


class Counts(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_double) for name in ("worst", "at", "total", "good_below")),
        *((name, ctypes.c_int64) for name in ("count", "not_finite")),
        ("above", ctypes.c_int64 * len(EDGES)),
    ]

    def errors(self) -> Errors:
        at_least = [self.count, *self.above, 0]
        bins = tuple(more - fewer for more, fewer in zip(at_least, at_least[1:]))
        return Errors(self.worst, self.at, self.total, self.count, self.not_finite, bins, self.good_below)


def described(curve: Curve) -> Description:
    options = {name: value or 0.0 for name, value in curve.options}
    form, exponent, factor = SOFT, options.get("gamma", 0.0), 1.0
    if curve.loss == "quality_focal_loss":
        form, exponent = QUALITY, options["beta"]
    elif curve.loss == "varifocal_loss" and curve.target:
        exponent, factor = 0.0, curve.target
    elif curve.loss == "asymmetric_loss":
        assert curve.target in (0.0, 1.0), "a sum of two forms"
        form = SHIFTED if options["clip"] and not curve.target else SOFT
        exponent = options["gamma_pos" if curve.target else "gamma_neg"]
    target, slope, lost = curve.score, exponent, 0.0
    if curve.loss == "matchability_aware_loss":
        slope = 0.0
        if target:
            exponent, target = 0.0, target**exponent
            lost = options["gamma"] * target
    elif curve.loss == "iou_aware_bce_loss" and target:
        form, slope = MEAN, options["alpha"]
    elif curve.loss == "gaussian_focal_loss":
        exponent = slope = options["alpha"]
        if 0 < target < 1:
            factor, target = (1 - target) ** options["beta"], 0.0
    slack = curve.underflow * torch.finfo(torch.float32).smallest_normal * torch.finfo(torch.float32).eps
    smoothing, clip = options.get("label_smoothing", 0.0), options.get("clip", 0.0)
    return Description(form, curve.cancels, target, exponent, smoothing, clip, slope, lost, factor, slack, EDGES)


def address(tensor: Tensor, dtype: torch.dtype) -> int:
    assert tensor.dtype == dtype and tensor.is_contiguous()
    return tensor.data_ptr()


class Exact:
    """exact.cpp, compiled into a folder."""

    def __init__(self, folder: Path) -> None:
        library = folder / "exact.so"
        done = subprocess.run([COMPILER, *FLAGS, str(SOURCE), "-o", str(library)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        self.library = ctypes.CDLL(str(library))
        pointer = ctypes.c_void_p
        self.library.exact_values.argtypes = (ctypes.POINTER(Description), ctypes.c_int64, pointer, pointer)
        self.library.exact_errors.argtypes = (
            ctypes.POINTER(Description),
            ctypes.c_int64,
            *[pointer] * 3,
            *[ctypes.POINTER(Counts)] * 2,
        )

    def closed(self, curve: Curve, x: Tensor) -> Closed:
        """As curve.exact(x), of float32 logits."""
        results = torch.empty(4, len(x), dtype=torch.float64)
        self.library.exact_values(ctypes.byref(described(curve)), len(x), address(x, torch.float32), results.data_ptr())
        loss, gradient, loss_terms, terms = results
        return Closed(loss, gradient, terms, loss_terms)

    def errors_of(self, curve: Curve, x: Tensor, loss: Tensor, gradient: Tensor) -> dict[str, Errors]:
        """The errors of float32 losses and gradients at the logits x."""
        found = {what: Counts(good_below=float("inf")) for what in ("loss", "gradient")}
        arrays = (address(each, torch.float32) for each in (x, loss, gradient))
        self.library.exact_errors(ctypes.byref(described(curve)), len(x), *arrays, *map(ctypes.byref, found.values()))
        return {what: counts.errors() for what, counts in found.items()}

    def measured(self, curve: Curve, x: Tensor) -> dict[str, Errors]:
        """As curves.measured()."""
        return self.errors_of(curve, x, *curve.values(x))

# Owns: which of these tests are collected: none without a GPU that the library has kernels for, no sanitizer where none
# is installed.
# Must not know: what they test.
from __future__ import annotations

import shutil

import focal_ext
import torch

HAS_GPU = torch.cuda.is_available() and focal_ext.build_info()["cuda"] is not None
collect_ignore_glob = (
    ["test_*.py"] if not HAS_GPU else [] if shutil.which("compute-sanitizer") else ["test_sanitizer.py"]
)

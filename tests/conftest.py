# Owns: the check that the suite runs over the library it means to test.
# Must not know: losses.
#
# The suite tests the native library. With FOCAL_EXT_TEST_BACKEND=reference it tests what an installation without one
# does:
#     FOCAL_EXT_NATIVE=0 FOCAL_EXT_TEST_BACKEND=reference pytest
from __future__ import annotations

import os
from pathlib import Path

import focal_ext
import pytest
import torch

REPOSITORY = Path(__file__).resolve().parents[1]
WANTED = os.environ.get("FOCAL_EXT_TEST_BACKEND", "native")


def why_not_under_test() -> str | None:
    """Why a run would say nothing about the wanted backend; None if it does."""
    info, package = focal_ext.build_info(), Path(focal_ext.__file__).resolve().parent
    if WANTED not in ("native", "reference"):
        return f"FOCAL_EXT_TEST_BACKEND must be native or reference, got {WANTED!r}"
    if info["backend"] != WANTED:
        return f"the suite is to test the {WANTED} backend, in use is {info['backend']}: {info['reason']}"
    if package.parent != REPOSITORY and "site-packages" not in package.parts:
        return f"focal_ext comes from {package}, neither this repository nor an installed package"
    loaded = {Path(path).resolve() for path in torch.ops.loaded_libraries if "focal_ext" in Path(path).name}
    wanted = {package / "libfocal_ext.so"} if WANTED == "native" else set()
    return (
        None
        if loaded == wanted
        else f"loaded libraries are {sorted(map(str, loaded))}, expected {sorted(map(str, wanted))}"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "cuda_code: about the compiled CUDA kernels; not collected where nvcc was not found when the library was built",
    )
    config.addinivalue_line(
        "markers", "native: about the native library; not collected when the reference is the backend under test"
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    reason = why_not_under_test()
    if reason:
        pytest.exit(f"focal_ext is not under test: {reason}", returncode=1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    absent = {"native"} if WANTED == "reference" else set()
    absent |= set() if focal_ext.build_info()["cuda"] else {"cuda_code"}
    if absent:
        dropped = [item for item in items if any(item.get_closest_marker(mark) for mark in absent)]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@pytest.fixture(autouse=True)
def same_conditions_for_every_test() -> None:
    """One thread: test_determinism.py proves that more give the same bits, and on busy cores a thread team mostly
    waits."""
    torch.manual_seed(0)
    torch.set_num_threads(1)

# Owns: a plugin under which the suite's tests call the kernels of aarch64: pytest -p tests.aarch64.on_aarch64
# tests/test_values.py
# Must not know: what is tested.
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

# Their files have other tests: these ask another library, or none.
OF_OTHERS = (
    "test_avx2_and_avx512_give_the_same_bits",
    "test_the_closed_form_is_the_textbook_in_50_digits",
    "test_distances_in_ulp_are_those_of_the_formats",
    "test_a_bad_id_is_nan_in_its_row_where_nothing_can_raise",  # compiles what the ops are called by
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_of_another(item: pytest.Item) -> bool:
        implementation = getattr(getattr(item, "callspec", None), "params", {}).get("implementation")
        return item.originalname in OF_OTHERS or (implementation is not None and implementation.name == "reference")

    dropped = [item for item in items if is_of_another(item)]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if not is_of_another(item)]


@pytest.fixture(scope="session")
def ops() -> Iterator[Any]:
    from aarch64 import emulated  # the tests' folder is on the path by now

    ops = emulated.EmulatedOps()
    yield ops
    ops.close()


@pytest.fixture(autouse=True)
def kernels_of_aarch64(request: pytest.FixtureRequest, ops: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """From here to the end of the test the public functions call them."""
    from focal_ext import _autograd, _native

    for module in (_autograd, _native):
        monkeypatch.setattr(module, "ops", ops)
    before = ops.calls
    yield
    assert ops.calls > before or "aarch64" in request.path.parts, "nothing was emulated"

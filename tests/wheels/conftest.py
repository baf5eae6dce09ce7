# Owns: which tests may run beside each other, and saying what a run cannot show.
# Must not know: environments' contents.
from __future__ import annotations

from typing import Any

import pytest
from environments import SUPPORTED, pythons

# These replace focal_ext in the environments that all share.
INSTALLERS = ("test_cpp", "test_installed")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        name = item.path.stem
        item.add_marker(pytest.mark.xdist_group("environments" if name in INSTALLERS else name))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = [f"3.{minor}" for minor in SUPPORTED if minor not in pythons()]
    if missing:
        terminalreporter.write_line(f"The wheel was not tried with Python {', '.join(missing)}: not on the PATH, nor among pyenv's.")

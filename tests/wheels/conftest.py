# Owns: saying what a run cannot show; which tests share a process.
# Must not know: environments' contents.
from __future__ import annotations

from typing import Any

import pytest
from environments import SUPPORTED, pythons

BUILDS = ("test_builds", "test_files")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = [f"3.{minor}" for minor in SUPPORTED if minor not in pythons()]
    if missing:
        terminalreporter.write_line(
            f"The wheel was not tried with Python {', '.join(missing)}: not on the PATH, nor among pyenv's."
        )


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Two processes: one installs into the environments, the other builds."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group("builds" if item.path.stem in BUILDS else "environments"))

# Owns: saying what a run cannot show.
# Must not know: environments' contents.
from __future__ import annotations

from typing import Any

from environments import SUPPORTED, pythons


def pytest_terminal_summary(terminalreporter: Any) -> None:
    missing = [f"3.{minor}" for minor in SUPPORTED if minor not in pythons()]
    if missing:
        terminalreporter.write_line(
            f"The wheel was not tried with Python {', '.join(missing)}: not on the PATH, nor among pyenv's."
        )

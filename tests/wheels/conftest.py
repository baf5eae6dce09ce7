# Owns: saying what a run cannot show.
# Must not know: environments' contents.
from __future__ import annotations

from typing import Any

from environments import other_python


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if other_python() is None:
        terminalreporter.write_line("No second Python with headers found: wheels were tried with one version only. Name one in FOCAL_EXT_OTHER_PYTHON.")

# Owns: that the installed wheel and the libraries themselves are under test; the worst differences, printed at the end.
# Must not know: losses.
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import focal_ext
import pytest
import torch
from torch import Tensor

WORST: dict[str, float] = {}


def pytest_sessionstart(session: pytest.Session) -> None:
    package, backend = Path(focal_ext.__file__).resolve(), focal_ext.build_info()["backend"]
    if "site-packages" not in package.parts or backend != "native":
        pytest.exit(f"the installed native wheel is to be tested, got {backend} from {package}", returncode=1)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(
        f"torch {torch.__version__}; worst difference from each library, relative to the largest value:"
    )
    for name in sorted(WORST):
        terminalreporter.write_line(f"  {name:40} {WORST[name]:.1e}")


@pytest.fixture(autouse=True)
def same_conditions_for_every_test() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def assert_close() -> Callable[[str, Tensor, Tensor, float], None]:
    """Compares tensors by their largest difference, relative to the largest value of the second."""

    def compare(name: str, ours: Tensor, theirs: Tensor, tolerance: float) -> None:
        assert ours.shape == theirs.shape and bool(theirs.isfinite().all())
        ours, theirs = ours.detach().double(), theirs.detach().double()
        difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30)) if theirs.numel() else 0.0
        WORST[name] = max(WORST.get(name, 0.0), difference)
        assert difference <= tolerance, f"{name}: off by {difference:.2e}"

    return compare

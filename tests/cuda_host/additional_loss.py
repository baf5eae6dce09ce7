# Owns: a loss that the package has not, in a copy of the kernels' text, as docs/adding_a_loss.md adds one: the kernels
# of a loss whose negatives are no focal loss's.
# Must not know: its formula, what is expected of it.
from __future__ import annotations

import shutil
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1] / "derivatives/poly1.h"
NAME = SOURCE.stem


def with_additional_loss(csrc: Path) -> None:
    """The last of the list."""
    shutil.copy(SOURCE, csrc / "losses")
    path = csrc / "losses/list.h"
    text = path.read_text()
    for place in ("\n\nnamespace focal_ext {", "\n#define FOCAL_EXT_SKIP"):
        assert text.count(place) == 1, f"{path} must have {place!r} once"
    include, entry = f'\n#include "{SOURCE.name}"', f" ONE_LOGIT({NAME}, 1, -1)"
    text = text.replace("\n\nnamespace focal_ext {", f"{include}\n\nnamespace focal_ext {{")
    path.write_text(text.replace("\n#define FOCAL_EXT_SKIP", f"{entry}\n#define FOCAL_EXT_SKIP"))

# Owns: the list of what is declared of every loss of one logit, a file each in this folder, in the order of their
# numbers.
# Must not know: formulas.
from __future__ import annotations

import importlib
import pkgutil

from .parts import Declared

_rooms = (
    importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
    if module.name != "parts"
)
DECLARED: dict[str, Declared] = {
    loss.name: loss for loss in sorted((room.LOSS for room in _rooms), key=lambda loss: loss.spec.number)
}

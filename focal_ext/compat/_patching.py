# Owns: putting a function in another library's place for a while.
# Must not know: which function, which library.
from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def replaced(modules: tuple[str, ...], name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Imports the modules and binds `name` in each of them to `function` until the context ends, also by an exception."""
    places = [importlib.import_module(module) for module in modules]
    with contextlib.ExitStack() as restore:
        for place in places:
            restore.callback(setattr, place, name, getattr(place, name))
        for place in places:
            setattr(place, name, function)
        yield

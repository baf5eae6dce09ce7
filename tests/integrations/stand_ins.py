# Owns: importing a library without what it imports and the losses do not call: readers of images, plots, compiled ops.
# Must not know: losses.
from __future__ import annotations

import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any


class _Any(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return cls


class _StandIn(ModuleType):
    """Has every name, each a class that has every name, is made of anything, and decorates."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Any(
            name, (), {"__init__": lambda self, *a, **k: None, "__call__": lambda self, *a, **k: a[0] if a else self}
        )


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def __init__(self, roots: tuple[str, ...]) -> None:
        self.roots = roots

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not any((name + ".").startswith(root + ".") for root in self.roots):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        return None


@contextlib.contextmanager
def beside(*roots: str, empty: tuple[str, ...] = ()) -> Iterator[None]:
    """Modules below the `roots` are stand-ins, and the packages in `empty` have their files but not what their __init__
    imports. What was imported meanwhile is forgotten afterwards."""
    finder, before = _Finder(roots), set(sys.modules)
    places = {
        name: Path(importlib.util.find_spec(name.partition(".")[0]).submodule_search_locations[0]) for name in empty
    }
    sys.meta_path.insert(0, finder)
    try:
        for name, place in places.items():
            sys.modules[name] = ModuleType(name)
            sys.modules[name].__path__ = [str(place.joinpath(*name.split(".")[1:]))]
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in set(sys.modules) - before:
            if (name.partition(".")[0] in {entry.partition(".")[0] for entry in empty}) or any(
                (name + ".").startswith(root + ".") for root in finder.roots
            ):
                del sys.modules[name]

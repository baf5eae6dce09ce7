# Owns: putting functions in the place of another library's, wherever they are bound, and putting them back.
# Must not know: which functions, which library.
from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import inspect
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from types import FunctionType, ModuleType
from typing import Any, NamedTuple


class Names(tuple[str, ...]):
    """Where something was replaced, or put back: dotted names, printed one a line."""

    def __str__(self) -> str:
        return "\n".join(self)


class _Binding(NamedTuple):
    """One name bound to a function: an attribute of a module or class, or an entry of a module's dict."""

    label: str
    holder: Any
    key: Any
    is_static: bool = False

    def value(self) -> Any:
        held = self.holder if isinstance(self.holder, dict) else vars(self.holder)
        return held[self.key].__func__ if self.is_static else held[self.key]

    def bind(self, function: Any) -> None:
        function = staticmethod(function) if self.is_static else function
        if isinstance(self.holder, dict):
            self.holder[self.key] = function
        else:
            setattr(self.holder, self.key, function)


def _of_holder(
    label: str, holder: Any, entries: Mapping[Any, Any], wanted: Mapping[int, Any]
) -> Iterator[tuple[_Binding, Any]]:
    for key, value in list(entries.items()):
        is_static = type(value) is staticmethod  # isinstance would ask proxies for their class, which warn
        function = value.__func__ if is_static else value
        if id(function) in wanted:
            yield (
                _Binding(f"{label}[{key!r}]" if isinstance(holder, dict) else f"{label}.{key}", holder, key, is_static),
                function,
            )


def bindings_of(functions: Iterable[Any], packages: Collection[str]) -> list[tuple[_Binding, Any]]:
    """Every name that is bound to one of these functions: in any imported module, and in classes and dicts of these
    packages."""
    wanted = {id(function): function for function in functions}
    found: list[tuple[_Binding, Any]] = []
    seen: set[int] = set()  # one module or class may have two names
    for label, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or label.partition(".")[0] == "focal_ext" or id(module) in seen:
            continue
        seen.add(id(module))
        found += _of_holder(label, module, vars(module), wanted)
        if label.partition(".")[0] not in packages:
            continue
        for key, value in list(vars(module).items()):
            if issubclass(type(value), type) and value.__module__ == label and id(value) not in seen:
                seen.add(id(value))
                found += _of_holder(f"{label}.{key}", value, vars(value), wanted)
            elif type(value) is dict and not key.startswith("__"):
                found += _of_holder(f"{label}.{key}", value, value, wanted)
    return found


def with_original(function: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a replacement whose first argument is the function it replaces, for what it leaves to it."""
    function.takes_original = True  # type: ignore[attr-defined]
    return function


def _installed(original: Callable[..., Any], fused: Callable[..., Any]) -> Callable[..., Any]:
    """A function object of its own, so that it can be told from the same function imported by name. It has the
    original's name, by which it pickles."""
    if getattr(fused, "takes_original", False):
        fused = functools.partial(fused, original)

    @functools.wraps(original)
    def installed(*args: Any, **options: Any) -> Any:
        return fused(*args, **options)

    return installed


def _parameters(function: Callable[..., Any]) -> list[str]:
    names = list(inspect.signature(function).parameters)
    return names[1:] if getattr(function, "takes_original", False) else names


class Switch:
    """The places of a library, "module:name" or "module:Class.method", and what computes the same, fused.

    known: the versions in which the places were tried. One of a newer version, or a name gone from a module that is
    there, raises; a module that an older version does not have yet is passed over.
    """

    def __init__(
        self, library: str, known: str, places: Mapping[str, Callable[..., Any]], distribution: str | None = None
    ) -> None:
        self.library, self.known, self.places = library, known, dict(places)
        self.distribution = distribution or library
        self._packages = {place.partition(":")[0].partition(".")[0] for place in self.places}
        self._lock = threading.RLock()
        self._originals: dict[int, tuple[Any, Any]] = {}  # by what was installed: itself, and what it replaced
        self._bindings: list[tuple[_Binding, Any]] = []
        self._depth, self._is_applied = 0, False

    def _version(self) -> str | None:
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return None

    def _is_older(self) -> bool:
        def numbers(version: str) -> list[int]:
            return [int("".join(c for c in part if c.isdigit()) or 0) for part in version.split("+")[0].split(".")[:3]]

        version = self._version()
        return version is not None and numbers(version) < numbers(self.known)

    def _original(self, place: str, fused: Callable[..., Any]) -> tuple[Any, str]:
        """What stands in a place, or None; and what is wrong, which is empty where it is the library that is too old
        for it."""
        module_name, _, dotted = place.partition(":")
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as missing:
            if (
                missing.name is None
                or not (module_name + ".").startswith(missing.name + ".")
                or missing.name in self._packages
            ):
                raise  # the library itself, or something that it needs, is not installed
            return None, "" if self._is_older() else f"{module_name} is missing"
        for part in dotted.split("."):
            found = vars(found).get(part)
            if found is None:
                return None, f"{module_name} has no {dotted}"
        if isinstance(found, type) or not callable(found):
            return None, f"{module_name}.{dotted} is not a function"
        # of a compiled one they are not told
        if isinstance(found, FunctionType) and _parameters(found) != _parameters(fused):
            return (
                None,
                f"{module_name}.{dotted} takes {', '.join(_parameters(found))}, not {', '.join(_parameters(fused))}",
            )
        return found, ""

    def _install(self) -> Names:
        found = {place: self._original(place, fused) for place, fused in self.places.items()}
        wrong = [reason for _, reason in found.values() if reason]
        originals = {id(function): (function, place) for place, (function, _) in found.items() if function is not None}
        if wrong or not originals:
            version = self._version()
            raise RuntimeError(
                f"{self.library}: nothing was replaced, focal_ext.compat knows version {self.known} and here is "
                f"{version or 'an unknown one'}:"
                f" {'; '.join(wrong) or 'none of its losses is there'}. Install {self.distribution}=={self.known}, or "
                "call focal_ext's functions in the losses"
            )
        installed = {key: _installed(function, self.places[place]) for key, (function, place) in originals.items()}
        self._bindings = bindings_of((function for function, _ in originals.values()), self._packages)
        self._originals = {id(new): (new, originals[key][0]) for key, new in installed.items()}
        for binding, function in self._bindings:
            binding.bind(installed[id(function)])
        return self._names()

    def _names(self) -> Names:
        return Names(sorted({binding.label for binding, _ in self._bindings}))

    def _put_back(self) -> Names:
        """Only where ours still stands; also in modules that were imported since."""
        restored: set[str] = set()
        since = bindings_of((new for new, _ in self._originals.values()), self._packages)
        for binding in [binding for binding, _ in self._bindings] + [binding for binding, _ in since]:
            with contextlib.suppress(KeyError):
                ours = self._originals.get(id(binding.value()))
                if ours is not None:
                    binding.bind(ours[1])
                    restored.add(binding.label)
        self._originals, self._bindings = {}, []
        self._depth, self._is_applied = 0, False
        return Names(sorted(restored))

    def apply(self) -> Names:
        """The fused losses stand in the library's place from now on. Returns the names that were replaced; a second
        call changes nothing."""
        with self._lock:
            names = self._names() if self._originals else self._install()
            self._is_applied = True
            return names

    def restore(self) -> Names:
        """The library's own losses stand in their places again. Returns the names that were put back: none where
        nothing was replaced."""
        with self._lock:
            return self._put_back() if self._originals else Names()

    @contextlib.contextmanager
    def patched(self) -> Iterator[Names]:
        """``with patched() as names:`` the fused losses stand in the library's place, and its own again afterwards,
        also by an exception."""
        with self._lock:
            names = self._names() if self._originals else self._install()
            self._depth += 1
        try:
            yield names
        finally:
            with self._lock:
                self._depth = max(self._depth - 1, 0)  # restore() may have been called in between
                if self._depth == 0 and not self._is_applied and self._originals:
                    self._put_back()

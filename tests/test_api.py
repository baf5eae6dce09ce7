# Owns: the promises of the documentation pages: docs/api.md and the list of losses are those of the docstrings, every
# argument is described, examples run, the package is typed.
# Must not know: losses.
from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import api
import focal_ext
import pytest
import torch

CALLABLES = {name: getattr(focal_ext, name) for name in focal_ext.__all__ if callable(getattr(focal_ext, name))}


@pytest.mark.parametrize("name", api.PAGES)
def test_a_page_is_that_of_the_docstrings(name: str) -> None:
    assert (api.DOCS / name).read_text() == api.PAGES[name](), "python tests/api.py --write"


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_is_described(name: str) -> None:
    documentation = inspect.getdoc(CALLABLES[name]) or ""
    inherited = "same arguments" in documentation
    described = {
        word for names in re.findall(r"^ *((?:\w+, )*\w+): ", documentation, re.MULTILINE) for word in names.split(", ")
    }
    assert (
        documentation
        and [
            parameter
            for parameter in inspect.signature(CALLABLES[name]).parameters
            if not inherited and parameter not in described
        ]
        == []
    )


@pytest.mark.parametrize("name", [name for name, value in CALLABLES.items() if ">>>" in (value.__doc__ or "")])
def test_the_example_runs(name: str) -> None:
    examples = doctest.DocTestFinder(recurse=False).find(
        CALLABLES[name], name, globs={**vars(focal_ext), "torch": torch, "focal_ext": focal_ext}
    )
    assert sum(len(example.examples) for example in examples) > 0
    assert [doctest.DocTestRunner().run(example).failed for example in examples] == [0] * len(examples)


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (Path(focal_ext.__file__).parent / "py.typed").exists()

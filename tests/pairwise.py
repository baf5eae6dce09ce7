# Owns: rows that hold every pair of values of two axes, for tests whose faults need at most two axes to come together.
# Must not know: what the axes mean.
from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest

Row = dict[str, Any]


def rows_of_every_pair(
    axes: Mapping[str, Sequence[Any]], is_possible: Callable[[Row], bool] = lambda row: True, seed: int = 0
) -> list[Row]:
    """Greedy: the best of 40 random rows that hold a pair still missing. Values are hashable; the rows are the same at
    every run. Values are numbers here, and a pair is a number too: the tables are made wherever a test is imported."""
    numbers: dict[tuple[str, Any], int] = {}
    for axis, values in axes.items():
        for value in values:
            numbers.setdefault((axis, value), len(numbers))
    count, of_number = len(numbers), list(numbers)
    places = {axis: [numbers[axis, value] for value in values] for axis, values in axes.items()}
    pairs = {x * count + y for a, b in itertools.combinations(places.values(), 2) for x in a for y in b}
    in_order = sorted(pairs, key=lambda pair: repr((of_number[pair // count], of_number[pair % count])))
    missing, rows, tries, rng = set(in_order), [], 0, random.Random(seed)
    while missing and tries < 400:
        in_order = [pair for pair in in_order if pair in missing]
        wanted = dict(of_number[number] for number in divmod(rng.choice(in_order), count))
        best, found = None, set()
        for _ in range(40):
            rolled = {axis: rng.choice(values) for axis, values in axes.items()} | wanted
            if not is_possible(rolled):
                continue
            each = [numbers[item] for item in rolled.items()]
            new = {pair for x, y in itertools.combinations(each, 2) if (pair := x * count + y) in missing}
            if len(new) > len(found):
                best, found = rolled, new
        if best is None:
            tries += 1  # most likely an impossible pair
            continue
        missing -= found
        rows.append(best)
    return rows


def pairwise(is_possible: Callable[[Row], bool] = lambda row: True, **axes: Sequence[Any]) -> Any:
    """pytest.mark.parametrize over rows_of_every_pair; of a mapping the test gets the name."""
    axes = {axis: tuple(values) for axis, values in axes.items()}
    rows = [tuple(row.values()) for row in rows_of_every_pair(axes, is_possible)]
    return pytest.mark.parametrize(", ".join(axes), rows, ids=["-".join(map(str, row)) for row in rows])


def taking_turns(turning: Mapping[str, Sequence[Any]], **axes: Sequence[Any]) -> Any:
    """pytest.mark.parametrize over the product of the axes. The values of each turning axis take turns along every
    other: the sum of the places in the axes says whose turn it is. Beside two axes or more of as many values all pairs
    of its values and theirs are there."""
    axes, rows = {axis: tuple(values) for axis, values in axes.items()}, []
    turns = {axis: tuple(values) for axis, values in turning.items()}
    for places in itertools.product(*(range(len(values)) for values in axes.values())):
        own = [values[i] for i, values in zip(places, axes.values())]
        rows.append((*own, *(values[sum(places) % len(values)] for values in turns.values())))
    return pytest.mark.parametrize(", ".join((*axes, *turns)), rows, ids=["-".join(map(str, row)) for row in rows])


def every_value_once(dtypes: Sequence[Any], rows: Iterable[str], whole: Sequence[str]) -> list[Any]:
    """Each row with one of the dtypes, which take turns, and the rows of `whole` with all: for checks that see a row
    and a dtype apart."""
    pairs = [*zip(itertools.cycle(dtypes), rows), *itertools.product(dtypes, whole)]
    return [pytest.param(dtype, row, id=f"{dtype}-{row}") for dtype, row in dict.fromkeys(pairs)]

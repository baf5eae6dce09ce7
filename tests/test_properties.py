# Owns: random calls of every loss, drawn by hypothesis, against the float64 reference: loss and gradient, for every
# implementation.
# Must not know: formulas, how far off an answer may be (test_values.py says how it is judged).
#
# pytest draws the same examples at every run. `make fuzz` draws others for FUZZ_MINUTES, from a seed it prints.
from __future__ import annotations

import os
import random
import sys
import time
from typing import Any

import hypothesis
import pytest
import torch
from axes import AXES, WEIGHTS
from cases import IMPLEMENTATIONS, RANK_NEEDED, Case, build
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from losses import DECLARED
from oracle import expected
from rounding import outside
from test_values import message, rounded_before_grad_output, slack

EXAMPLES = 350  # of each loss: 2,450 in all
EXPONENT = st.one_of(st.sampled_from((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)), st.floats(0, 5))
# a smaller factor is no normal float32
FRACTION = st.one_of(st.sampled_from((0.0, 0.25, 0.5, 1.0)), st.floats(1e-36, 1))
KINDS: dict[str, st.SearchStrategy[Any]] = {
    "exponent": EXPONENT,
    "exponent from 1": st.one_of(st.sampled_from((0.0, 1.0, 2.0)), st.floats(1, 5)),
    "fraction": FRACTION,
    "fraction or None": st.one_of(st.none(), FRACTION),
    "alpha": st.one_of(st.sampled_from((None, -1, "list", "tensor")), FRACTION),
    "clip": st.one_of(st.none(), st.just(0.05), st.floats(1e-3, 0.97)),
    "flag": st.booleans(),
}
# What replaces an axis of the table: numbers that nobody chose.
NUMBERS = {name: {parameter: KINDS[kind] for parameter, kind in loss.drawn.items()} for name, loss in DECLARED.items()}
SHAPES = st.one_of(
    st.tuples(st.integers(0, 90), st.integers(0, 100)),
    st.tuples(st.integers(1, 300), st.integers(1, 8)),
    st.tuples(st.integers(0, 40)),
    st.tuples(st.integers(0, 4), st.integers(1, 12), st.integers(1, 20)),
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(1, 9)),
)


@st.composite
def calls(draw: st.DrawFn, loss: str) -> Case:
    """A row of the table that may be in none: its axes in full, any shape and any number."""
    axes = {
        axis: draw(st.sampled_from(values))
        for axis, values in AXES[loss].items()
        if axis not in NUMBERS[loss] and axis != "shape"
    }
    axes |= {axis: draw(strategy) for axis, strategy in NUMBERS[loss].items()}
    axes |= {
        "shape": draw(SHAPES),
        "weight": draw(st.sampled_from(WEIGHTS)),
        "layout": draw(st.sampled_from(list(AXES["sigmoid_focal_loss"]["layout"]))),
    }
    case = Case(loss, tuple((axis, axes[axis]) for axis in AXES[loss]))
    if case.is_dense:  # what only class ids have
        case = changed(case, ignore_index=-2, reduction=case.reduction.replace(" / positives", ""))
    if not case.targets.startswith("pair"):
        case = changed(case, scores="float32")
    if not case.reduction.startswith("none") and case.upstream.startswith("map"):
        case = changed(case, upstream="three")
    if len(case.shape) < RANK_NEEDED.get(case.layout, 1):
        case = changed(case, layout="contiguous")
    hypothesis.assume(case.is_possible())
    hypothesis.assume(
        case.ignore_index is None or case.ignore_index < 0 or case.ignore_index > 100 or case.shape[-1] > 0
    )
    return case


def changed(case: Case, **axes: Any) -> Case:
    return case._replace(axes=tuple((axis, axes.get(axis, value)) for axis, value in case.axes))


def judge(case: Case) -> None:
    """As test_values.py does."""
    call = build(case)
    want = expected(call, case.loss)
    for implementation in IMPLEMENTATIONS:
        loss, gradient = call.run(implementation, case.loss)
        assert (
            loss.shape == want.loss.shape
            and gradient.shape == call.inputs.shape
            and gradient.dtype == call.inputs.dtype
        )
        off = outside(
            loss,
            want.loss,
            slack(implementation, case, call, want, "hard" if case.reduction == "none" else "sum", want.loss_magnitude),
        )
        assert not off.any(), f"{implementation.name}: {message(case, 'losses', loss, want.loss, off)}"
        room = slack(implementation, case, call, want, "hard", want.gradient_magnitude)
        if implementation.name != "reference" and case.reduction != "none" and case.dtype != "float16":
            room = room + rounded_before_grad_output(want.gradient, float(call.upstream), gradient.dtype)
        off = outside(gradient, want.gradient, room)
        assert not off.any(), f"{implementation.name}: {message(case, 'gradients', gradient, want.gradient, off)}"


def search(loss: str, examples: int, seed: int | None = None) -> None:
    """Judges random calls; a failing one is made smaller and shown."""
    health = (HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large)
    test = settings(
        max_examples=examples, deadline=None, database=None, derandomize=seed is None, suppress_health_check=health
    )(given(calls(loss))(judge))
    (test if seed is None else hypothesis.seed(seed)(test))()


@pytest.mark.parametrize("loss", AXES)
def test_random_calls_are_those_of_the_float64_reference(loss: str) -> None:
    search(loss, EXAMPLES)


def fuzz(minutes: float, seed: int) -> None:
    end, done = time.monotonic() + 60 * minutes, 0
    while time.monotonic() < end:
        for loss in AXES:
            print(f"FUZZ_SEED={seed} {loss}: {done} examples before", flush=True)
            search(loss, 500, seed)
            done += 500
        seed += 1
    print(f"{done} examples, nothing found")


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(
        fuzz(float(os.environ.get("FUZZ_MINUTES", "10")), int(os.environ.get("FUZZ_SEED", random.randrange(2**32))))
    )

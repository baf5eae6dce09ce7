# Owns: that no call of a raw op ends the process, or gives back or leaves memory that it did not write; opcheck of
# every op.
# Must not know: the calls (hostile.py), and which of them are wrong.
from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import hostile
import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.native
# What a call may raise; NotImplementedError where torch has no kernel to dispatch to (sparse, quantized).
ALLOWED = {"right", "RuntimeError", "ValueError", "TypeError", "NotImplementedError"}


@pytest.fixture(scope="module")
def outcomes() -> list[tuple[str, str, str]]:
    """Op, what was changed, what came, of every call."""
    path = repr([entry for entry in sys.path if entry])
    program = f"import sys, runpy; sys.path[:0] = {path}; runpy.run_path({hostile.__file__!r}, run_name='__main__')"
    environment = {**os.environ, "MALLOC_PERTURB_": "85"}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"the process ended in {lines[-1] if lines else 'its imports'}\n{done.stderr[-2000:]}"
    return [(*json.loads(call), outcome) for call, outcome in (line.split("\t") for line in lines)]


def test_every_hostile_call_is_an_exception_or_writes_all_that_it_returns(outcomes: list[tuple[str, str, str]]) -> None:
    assert [row for row in outcomes if row[2] not in ALLOWED] == []
    count = Counter(outcome for *_, outcome in outcomes)
    assert len(outcomes) > 5000 and count["right"] > 1000 and count["RuntimeError"] > 1000, count


def test_every_op_takes_its_right_arguments(outcomes: list[tuple[str, str, str]]) -> None:
    from focal_ext._native import OPS, PYRAMID_OPS

    right = {op for op, change, outcome in outcomes if change.endswith(" right") and outcome == "right"}
    assert right == {*OPS, *PYRAMID_OPS}
    assert all(outcome == "right" for _, change, outcome in outcomes if change.endswith(" right"))


REFUSED = ["freed", "freed, strided", "shortened by a byte", "on meta", "complex64", "quantized", "nested"]


@pytest.mark.parametrize(
    "change", [*REFUSED, "is nan", "is inf", "is -inf", "shares memory with what is written", "one level twice"]
)
def test_what_no_op_can_take_is_always_refused(change: str, outcomes: list[tuple[str, str, str]]) -> None:
    taken = [row for row in outcomes if row[1].endswith(change) and row[2] == "right" and row[0] != "first_bad_id"]
    assert taken == [] and any(row[1].endswith(change) for row in outcomes)


@pytest.mark.parametrize(
    "op, given",
    list(hostile.right_calls()),
    ids=[f"{number} {op}" for number, (op, _) in enumerate(hostile.right_calls())],
)
def test_opcheck_finds_nothing_wrong_with_any_op(op: str, given: list[object]) -> None:
    from focal_ext._native import IN_PLACE_OPS, ops

    torch.library.opcheck(getattr(ops, op).default, tuple(given))
    if op not in IN_PLACE_OPS:
        # The last would differentiate the result of an op that refuses it.
        tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")[
            : 3 if op in REFUSE else 4
        ]
        torch.library.opcheck(getattr(ops, op).default, (leaves(given[0]), *given[1:]), test_utils=tests)


REFUSE = ("gradient", "pyramid_gradient")


def leaves(value: object) -> object:
    if isinstance(value, list):
        return [leaves(v) for v in value]
    return value.clone().requires_grad_() if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("by_tensors", [False, True], ids=["", "numbers by tensors"])
@pytest.mark.parametrize("op, given", [call for call in hostile.right_calls() if call[0] in REFUSE])
def test_a_gradient_is_not_differentiated_again(op: str, given: list[object], by_tensors: bool) -> None:
    from focal_ext._native import ops

    levels = leaves(given[0])
    found = (
        getattr(ops, f"{op}_by_tensors")(levels, *given[1:], [], [])
        if by_tensors
        else getattr(ops, op)(levels, *given[1:])
    )
    first = (found[0], levels[0]) if isinstance(found, list) else (found, levels)
    with pytest.raises(
        RuntimeError, match="a gradient has no derivative of its own; for second derivatives use focal_ext.reference"
    ):
        sum(t.sum() for t in first).backward()  # type: ignore[union-attr]


# ---- ops in place follow torch's rules -------------------------------------------------------------------


def in_place_calls() -> list[tuple[str, list[object]]]:
    return [(op, given) for op, given in hostile.right_calls() if op.endswith("_")]


@pytest.mark.parametrize("op, given", in_place_calls())
def test_an_op_in_place_refuses_what_wants_a_gradient_and_counts_a_version_of_the_rest(
    op: str, given: list[object]
) -> None:
    from focal_ext._native import ops

    target = given[0][0] if isinstance(given[0], list) else given[0]
    assert isinstance(target, Tensor)
    leaf = target.clone().requires_grad_()
    for written in (leaf, leaf * 1, leaf.view_as(leaf)):
        before = written.detach().clone()
        with pytest.raises(
            RuntimeError, match=r"writes over a tensor that requires grad, and has no derivative; pass t\.detach\(\)"
        ):
            getattr(ops, op)([written, *given[0][1:]] if isinstance(given[0], list) else written, *given[1:])
        assert torch.equal(written, before)
    saved = target.clone()
    product = saved * torch.ones((), requires_grad=True)  # saves its factor
    getattr(ops, op)([saved, *given[0][1:]] if isinstance(given[0], list) else saved, *given[1:])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.no_grad():
        getattr(ops, op)([leaf, *given[0][1:]] if isinstance(given[0], list) else leaf, *given[1:])
    assert leaf._version == 1

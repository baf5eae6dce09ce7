# Owns: that no list of losses leaves one out: a new loss is missed here before anything about it goes untested
# (docs/adding_a_loss.md).
# Must not know: what the lists are for.
from __future__ import annotations

import re
from pathlib import Path

import focal_ext
import pytest
import torch
from focal_ext import losses as rooms
from focal_ext._spec import FUNCTIONS, LOSSES
from losses import DECLARED

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {name for name in focal_ext.__all__ if name.endswith("_loss") and hasattr(rooms, name)}
OF_ONE_LOGIT = PUBLIC - {"softmax_focal_loss"}  # which has tables of its own


def test_every_loss_has_a_number_and_a_module_and_those_of_one_logit_are_declared_to_the_tests() -> None:
    assert {function.__name__ for function in FUNCTIONS} == PUBLIC
    assert {"".join(part.capitalize() for part in name.split("_")) for name in PUBLIC} <= set(focal_ext.__all__)
    assert set(DECLARED) == OF_ONE_LOGIT


def test_both_sides_number_the_losses_alike() -> None:
    header = (ROOT / "csrc/losses/list.h").read_text()
    names = [function.__name__.removesuffix("_loss") for function in FUNCTIONS]
    assert re.findall(r"^  (?:ONE_LOGIT|ROW)\((\w+),", header, re.MULTILINE) == names and [
        spec.number for spec in LOSSES
    ] == list(range(len(names)))


@pytest.mark.parametrize(
    "loss, parameter", [(loss, name) for loss, declared in DECLARED.items() for name in declared.parameters]
)
def test_a_call_that_differs_in_one_parameter_is_not_taken_for_the_one_before(loss: str, parameter: str) -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets = torch.tensor([0.0, 1.0, 0.4]).repeat(40, 1)
    values = []
    for value in DECLARED[loss].parameters[parameter][:2]:
        total = getattr(focal_ext, loss)(x, targets, **{parameter: value}, reduction="sum")
        values.append(float(total.detach() + torch.autograd.grad(total, x)[0].abs().sum()))
    assert values[0] != values[1]

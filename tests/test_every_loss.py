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

from bench import family_baselines

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {name for name in focal_ext.__all__ if name.endswith("_loss") and hasattr(rooms, name)}
OF_ONE_LOGIT = PUBLIC - {"softmax_focal_loss"}  # which has tables of its own


LISTS = {
    "tests/losses": set(DECLARED),
    "bench/family_baselines.py": {*(forms.loss for forms in family_baselines.BASELINES.values()), "sigmoid_focal_loss"}
    - {"softmax_focal_loss"},  # bench/baselines.py is the focal loss's
}


@pytest.mark.parametrize("where", LISTS)
def test_a_list_has_every_loss_of_one_logit(where: str) -> None:
    assert LISTS[where] == OF_ONE_LOGIT


def test_every_loss_has_a_number_a_module_and_its_line_in_the_documentation() -> None:
    assert {function.__name__ for function in FUNCTIONS} == PUBLIC
    assert {"".join(part.capitalize() for part in name.split("_")) for name in PUBLIC} <= set(focal_ext.__all__)
    text = (ROOT / "docs/losses.md").read_text()
    assert all(f"| `{name}` |" in text for name in PUBLIC)


def test_both_sides_number_the_losses_alike() -> None:
    header = (ROOT / "csrc/losses/parameters.h").read_text()
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

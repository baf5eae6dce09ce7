# Owns: that no list of losses leaves one out: a new loss is missed here before anything about it goes untested (docs/adding_a_loss.md).
# Must not know: what the lists are for.
from __future__ import annotations

import re
from pathlib import Path

import axes
import curves
import family
import focal_ext
import formulas
import pytest
import test_extremes
import test_modules
import test_oracle
import test_properties
import test_transforms
import torch
from cuda_host import family as cuda_family
from focal_ext import losses
from focal_ext._spec import FUNCTIONS, LOSSES

from bench import family_baselines

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {name for name in focal_ext.__all__ if name.endswith("_loss") and hasattr(losses, name)}
OF_ONE_LOGIT = PUBLIC - {"softmax_focal_loss"}  # which has tables of its own


def derivatives() -> set[str]:
    text = (ROOT / "tests/derivatives/derivatives.cpp").read_text()
    return {f"{name}_loss" for name in re.findall(r"compare_all\({Loss::(\w+)", text)}


LISTS = {
    "tests/axes.py": set(axes.AXES),
    "tests/formulas.py, CLOSED": set(formulas.CLOSED),
    "tests/formulas.py, TEXTBOOK": set(formulas.TEXTBOOK),
    "tests/family.py, MEMBERS": {member.loss for member in family.MEMBERS.values()},
    "tests/family.py, EVERYDAY": {member.loss for member in family.EVERYDAY.values()},
    "tests/cuda_host/family.py": {loss for loss, _ in cuda_family.FORMULAS.values()},
    "tests/test_extremes.py": {loss for loss, _ in test_extremes.FORMULAS},
    "tests/test_oracle.py": {loss for loss, _ in test_oracle.FORMULAS},
    "tests/test_properties.py": set(test_properties.NUMBERS),
    "tests/test_modules.py": {test_modules.function_of(module).__name__ for module in test_modules.MODULES},
    "tests/test_transforms.py": set(test_transforms.LOSS_OF.values()),
    "tests/derivatives/derivatives.cpp": derivatives(),
    "tests/curves.py": {curve.loss for group in curves.FAMILY.values() for curve in group},
    "bench/family_baselines.py": {*family_baselines.BASELINES, "sigmoid_focal_loss"} - {"softmax_focal_loss"},  # bench/baselines.py is the focal loss's
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
    found = re.search(r"enum class Loss : int {([^}]*)}", header)
    names = [function.__name__.removesuffix("_loss") for function in FUNCTIONS]
    assert found and [name.strip() for name in found[1].split(",")] == names and [spec.number for spec in LOSSES] == list(range(len(names)))
    assert f"kLastLoss = Loss::{names[-1]};" in header


@pytest.mark.parametrize("loss, parameter", [(loss, name) for loss in sorted(OF_ONE_LOGIT) for name in axes.PARAMETERS if name in axes.AXES[loss]])
def test_a_call_that_differs_in_one_parameter_is_not_taken_for_the_one_before(loss: str, parameter: str) -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    targets = (torch.arange(120).view(40, 3) % 5 == 0).float()
    first, second = (float(getattr(focal_ext, loss)(x, targets, **{parameter: value}, reduction="sum")) for value in axes.AXES[loss][parameter][:2])
    assert first != second

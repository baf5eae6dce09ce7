# Owns: the losses as modules: the functions' arguments and defaults, buffers and parameters, copies, and init_prior_.
# Must not know: formulas.
from __future__ import annotations

import copy
import inspect
import io
import pickle
from typing import Any

import focal_ext
import pytest
import torch
from focal_ext import losses
from losses import DECLARED
from torch import Tensor, nn


def module_of(loss: str) -> type[nn.Module]:
    return getattr(focal_ext, "".join(part.capitalize() for part in loss.split("_")))


# Each with options that differ from its defaults.
MODULES = {module_of(name): dict(list(loss.members.values())[-1]) for name, loss in DECLARED.items()}
MODULES[focal_ext.SigmoidFocalLoss] |= {"gamma": 1.5, "alpha": torch.tensor([0.1, 0.2, 0.3])}
every_module = pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__)
X, IDS = torch.randn(6, 3), torch.tensor([0, -1, 3, 2, -5, 1])


def targets_of(module: type[nn.Module], ids: Tensor = IDS) -> Any:
    return (ids, torch.linspace(0.1, 0.9, 6)) if module.function.spec.needs_scores else ids


def function_of(module: type[nn.Module]) -> Any:
    return next(getattr(losses, name) for name in DECLARED if module_of(name) is module)


@every_module
def test_a_module_is_its_function_with_the_same_arguments_and_defaults(module: type[nn.Module]) -> None:
    function, targets = function_of(module), targets_of(module)
    own = inspect.signature(module).parameters
    theirs = {
        name: p for name, p in inspect.signature(function).parameters.items() if name not in ("inputs", "targets")
    }
    assert {n: (p.default, p.kind) for n, p in own.items()} == {n: (p.default, p.kind) for n, p in theirs.items()}
    options = {**MODULES[module], "reduction": "sum", "normalizer": "positives", "ignore_index": -5}
    made, weight = module(**options), torch.rand(3)
    assert torch.equal(made(X, targets, weight), function(X, targets, weight=weight, **options))
    assert torch.equal(made(X, targets), function(X, targets, **options))
    plain = targets_of(module, IDS.clamp(min=-2))
    assert torch.equal(module()(X, plain), function(X, plain))
    assert all(f"{name}=" in repr(made) for name in options)


@every_module
def test_copies_and_pickles_compute_the_same_and_share_nothing(module: type[nn.Module]) -> None:
    made = module(**MODULES[module], reduction="sum", normalizer=torch.tensor(2.0), ignore_index=-5)
    want, stored = made(X, targets_of(module)), io.BytesIO()
    torch.save(made, stored)
    stored.seek(0)
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), torch.load(stored, weights_only=False)):
        assert type(other) is module and torch.equal(other(X, targets_of(module)), want)
        other.normalizer.mul_(2)
    assert torch.equal(made(X, targets_of(module)), want)


@every_module
def test_tensors_move_with_the_module_and_stay_out_of_its_state(module: type[nn.Module]) -> None:
    made = module(**MODULES[module], reduction="sum", normalizer=torch.tensor(2.0), weight=torch.ones(3))
    assert not made.state_dict() and not list(made.parameters())
    assert {"normalizer", "weight"} <= {name for name, _ in made.named_buffers()}
    made.load_state_dict({})
    assert all(buffer.device.type == "meta" for buffer in copy.deepcopy(made).to("meta").buffers())
    assert made.double().normalizer.dtype == torch.float64
    assert made(X.double(), targets_of(module, IDS.clamp(min=-2))).dtype == torch.float64


@pytest.mark.parametrize("option", ["weight", "normalizer", "alpha"])
def test_a_parameter_is_trained_saved_and_copied_with_the_module(option: str) -> None:
    start = {"weight": torch.ones(3), "normalizer": torch.tensor(2.0), "alpha": torch.full((3,), 0.25)}[option]
    made = focal_ext.SigmoidFocalLoss(**{option: nn.Parameter(start)}, reduction="sum", ignore_index=-5)
    made(X, IDS).backward()
    assert list(made.state_dict()) == [option] and getattr(made, option).grad.any()
    torch.optim.SGD(made.parameters(), 0.01).step()
    other = focal_ext.SigmoidFocalLoss(
        **{option: nn.Parameter(start.detach().clone())}, reduction="sum", ignore_index=-5
    )
    other.load_state_dict(made.state_dict())
    twin = copy.deepcopy(made)
    assert (
        torch.equal(other(X, IDS), made(X, IDS))
        and torch.equal(twin(X, IDS), made(X, IDS))
        and isinstance(getattr(twin, option), nn.Parameter)
    )


@every_module
def test_wrong_options_are_errors_when_the_module_is_made(module: type[nn.Module]) -> None:
    for wrong in (
        {"reduction": "avg"},
        {"reduction": "mean", "normalizer": 2.0},
        *({name: -0.5} for name in MODULES[module]),
    ):
        with pytest.raises((ValueError, TypeError), match=list(wrong)[-1]):
            module(**wrong)


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
def test_init_prior_sets_the_bias_alone_and_every_score_to_the_prior(prior: float) -> None:
    for layer, inputs in ((nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2)), (nn.Linear(3, 4), torch.zeros(1, 3))):
        weight = layer.weight.detach().clone()
        assert focal_ext.init_prior_(layer, prior) is layer
        assert torch.allclose(layer(inputs).sigmoid(), torch.tensor(prior)) and torch.equal(layer.weight, weight)
        assert layer.bias.requires_grad and layer.bias.is_leaf

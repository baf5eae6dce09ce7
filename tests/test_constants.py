# Owns: figures that papers and other libraries publish, which any correct implementation reproduces.
# Must not know: how they are computed here.
from __future__ import annotations

import math

import focal_ext
import pytest
import torch
import torch.nn.functional as F
from cases import IMPLEMENTATIONS, Implementation
from torch import Tensor, nn

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)

# Logits, labels, loss and gradient at gamma 2, alpha .25: summed over classes, averaged over rows (mmcv's and mmdet's tests).
PEERS = [
    ([[1, 0], [0, 1]], [0, 1], 0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
    ([[1, 0, -1], [0, 1, 2]], [2, 1], 1.10251082, [[0.28808802, 0.11185755, -0.09602934], [0.11185755, -0.00657264, 0.40376765]]),
]


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logits, labels, loss, gradient", PEERS)
def test_the_peers_own_test_values_come_out(logits: list, labels: list, loss: float, gradient: list, dtype: torch.dtype, implementation: Implementation) -> None:
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    total = implementation.module.sigmoid_focal_loss(x, torch.tensor(labels), reduction="sum", normalizer=float(len(labels)))
    total.backward()
    assert total.item() == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(x.grad, torch.tensor(gradient, dtype=dtype) * 2 / len(labels), rtol=0, atol=1e-6)


def torchvision(inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none") -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, from its documentation."""
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


@implementations
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("arguments", [(), (0.75,), (-1,), (0.25, 1.5), (-1, 0)], ids=str)
def test_torchvisions_positional_calls_give_torchvisions_numbers(arguments: tuple, reduction: str, implementation: Implementation) -> None:
    x, t = torch.randn(30, 7, dtype=torch.float64) * 2, torch.rand(30, 7, dtype=torch.float64)
    full = (*arguments, *(0.25, 2)[len(arguments) :], reduction)
    assert torch.allclose(implementation.module.sigmoid_focal_loss(x, t, *full), torchvision(x, t, *full), rtol=1e-10)


def logit_of(p: float) -> float:
    return math.log(p / (1 - p))


@implementations
@pytest.mark.parametrize("p_t, times", [(0.9, 100.0), (0.9683772, 1000.0)])
def test_an_easy_example_weighs_as_much_less_than_under_cross_entropy_as_the_paper_says(p_t: float, times: float, implementation: Implementation) -> None:
    for x, label in ((logit_of(p_t), 0), (-logit_of(p_t), -1)):
        x, ids = torch.tensor([[x]], dtype=torch.float64), torch.tensor([label])
        focal, entropy = (implementation.module.sigmoid_focal_loss(x, ids, None, gamma).item() for gamma in (2.0, 0.0))
        assert entropy == pytest.approx(-math.log(p_t), rel=1e-9)
        assert entropy / focal == pytest.approx(times, rel=2e-6)


@implementations
def test_losses_at_the_prior_are_those_of_retinanets_first_step(implementation: Implementation) -> None:
    head = focal_ext.init_prior_(nn.Linear(1, 2))
    assert head.bias.tolist() == pytest.approx([-4.59511985] * 2, abs=1e-6)
    x = torch.full((1, 2), -math.log(99), dtype=torch.float64)
    positive, negative = implementation.module.sigmoid_focal_loss(x, torch.tensor([0]))[0].tolist()
    assert positive == pytest.approx(1.1283818, abs=1e-7)
    assert negative == pytest.approx(7.5377519e-07, rel=1e-7)  # .75 * .01^2 * -log(.99)


@pytest.mark.parametrize("prior", [0.01, 0.5, 0.9])
def test_init_prior_sets_the_bias_alone_and_every_score_to_the_prior(prior: float) -> None:
    for layer, inputs in ((nn.Conv2d(3, 4, 1), torch.zeros(1, 3, 2, 2)), (nn.Linear(3, 4), torch.zeros(1, 3))):
        weight = layer.weight.detach().clone()
        assert focal_ext.init_prior_(layer, prior) is layer
        assert torch.allclose(layer(inputs).sigmoid(), torch.tensor(prior)) and torch.equal(layer.weight, weight)
        assert layer.bias.requires_grad and layer.bias.is_leaf


@pytest.mark.parametrize("alpha", [0.25, None, [0.1, 0.2, 0.3], torch.tensor([0.1, 0.2, 0.3])], ids=["float", "None", "list", "tensor"])
def test_the_module_is_the_function_with_the_same_arguments_and_defaults(alpha: object) -> None:
    x, ids, weight = torch.randn(6, 3), torch.tensor([0, -1, 3, 2, -5, 1]), torch.rand(3)
    options = {"alpha": alpha, "gamma": 1.5, "reduction": "sum", "normalizer": "positives", "ignore_index": -5}
    module = focal_ext.SigmoidFocalLoss(**options)
    assert torch.equal(module(x, ids, weight), focal_ext.sigmoid_focal_loss(x, ids, weight=weight, **options))
    assert torch.equal(module(x, ids), focal_ext.sigmoid_focal_loss(x, ids, **options))
    assert torch.equal(focal_ext.SigmoidFocalLoss()(x, ids.clamp(min=-2)), focal_ext.sigmoid_focal_loss(x, ids.clamp(min=-2)))
    assert "gamma=1.5" in repr(module) and not module.state_dict()
    moved = module.to("meta")
    assert not isinstance(alpha, Tensor) or moved.alpha.device.type == "meta"

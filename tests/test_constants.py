# Owns: figures that papers and other libraries publish, which any correct implementation reproduces.
# Must not know: how they are computed here.
from __future__ import annotations

import math

import focal_ext
import pytest
import torch
import torch.nn.functional as F
from cases import IMPLEMENTATIONS, Implementation
from formulas import textbook_point
from torch import Tensor, nn

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)

# Logits, labels, loss and gradient at gamma 2, alpha .25: summed over classes, averaged over rows (mmcv's and mmdet's
# tests).
PEERS = [
    ([[1, 0], [0, 1]], [0, 1], 0.13562961, [[-0.00657264, 0.11185755], [0.11185755, -0.00657264]]),
    (
        [[1, 0, -1], [0, 1, 2]],
        [2, 1],
        1.10251082,
        [[0.28808802, 0.11185755, -0.09602934], [0.11185755, -0.00657264, 0.40376765]],
    ),
]


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("logits, labels, loss, gradient", PEERS)
def test_the_peers_own_test_values_come_out(
    logits: list, labels: list, loss: float, gradient: list, dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.tensor(logits, dtype=dtype, requires_grad=True)
    total = implementation.module.sigmoid_focal_loss(
        x, torch.tensor(labels), reduction="sum", normalizer=float(len(labels))
    )
    total.backward()
    assert total.item() == pytest.approx(loss, abs=1e-6)
    assert torch.allclose(x.grad, torch.tensor(gradient, dtype=dtype) * 2 / len(labels), rtol=0, atol=1e-6)


def torchvision(
    inputs: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss, from its documentation."""
    p = torch.sigmoid(inputs)
    ce = F.binary_cross_entropy_with_logits(inputs, targets, reduction="none")
    p_t = p * targets + (1 - p) * (1 - targets)
    loss = ce * (1 - p_t) ** gamma
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return {"none": loss, "mean": loss.mean(), "sum": loss.sum()}[reduction]


# What the peers compute, from their documentation: of an (ids, scores) pair, or of dense labels.


def mmdet_quality(x: Tensor, ids: Tensor, scores: Tensor, beta: float) -> Tensor:
    """Negatives against a score of 0, then each positive's own class against its score."""
    p = x.sigmoid()
    loss = F.binary_cross_entropy_with_logits(x, torch.zeros_like(x), reduction="none") * p**beta
    rows = ((ids >= 0) & (ids < x.shape[1])).nonzero()[:, 0]
    chosen, score = x[rows, ids[rows]], scores[rows]
    loss[rows, ids[rows]] = (
        F.binary_cross_entropy_with_logits(chosen, score, reduction="none") * (score - chosen.sigmoid()).abs() ** beta
    )
    return loss


def mmdet_varifocal(x: Tensor, t: Tensor, alpha: float, gamma: float) -> Tensor:
    p, positive = x.sigmoid(), (t > 0).to(x.dtype)
    focus = t * positive + alpha * (p - t).abs() ** gamma * (1 - positive)
    return F.binary_cross_entropy_with_logits(x, t, reduction="none") * focus


def timm_asymmetric(x: Tensor, y: Tensor, gamma_neg: float, gamma_pos: float, clip: float) -> Tensor:
    """With its log clamped at 1e-8, which no logit here reaches."""
    positive, negative = x.sigmoid(), ((1 - x.sigmoid()) + clip).clamp(max=1)
    ce = y * positive.clamp(min=1e-8).log() + (1 - y) * negative.clamp(min=1e-8).log()
    p_t = positive * y + negative * (1 - y)
    return -ce * (1 - p_t) ** (gamma_pos * y + gamma_neg * (1 - y))


@implementations
@pytest.mark.parametrize("loss", ["quality", "varifocal", "asymmetric"])
def test_peers_calls_of_the_family_give_their_numbers(loss: str, implementation: Implementation) -> None:
    x, ids, scores = (
        (torch.randn(40, 7, dtype=torch.float64) * 2).requires_grad_(),
        torch.randint(0, 8, (40,)),
        torch.rand(40, dtype=torch.float64),
    )
    t = F.one_hot(ids, 8)[:, :7] * scores[:, None]
    y = (torch.rand(40, 7) < 0.2).double()
    ours, peers = {
        "quality": (
            implementation.module.quality_focal_loss(x, (ids, scores), 1.5),
            mmdet_quality(x, ids, scores, 1.5),
        ),
        "varifocal": (
            implementation.module.varifocal_loss(x, (ids, scores), 0.6, 1.7),
            mmdet_varifocal(x, t, 0.6, 1.7),
        ),
        "asymmetric": (
            implementation.module.asymmetric_loss(x, y, 3.0, 0.5, 0.1),
            timm_asymmetric(x, y, 3.0, 0.5, 0.1),
        ),
    }[loss]
    assert torch.allclose(ours, peers, rtol=1e-9, atol=1e-12)
    near = (x.detach().sigmoid() - 0.1).abs() > 1e-6
    assert torch.allclose(
        *(torch.autograd.grad(total.sum(), x)[0] * near for total in (ours, peers)), rtol=1e-8, atol=1e-12
    )


@implementations
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_confident_errors_of_the_asymmetric_loss_keep_their_gradients_where_a_clamped_log_has_none(
    dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.tensor([[-18.0, -19.0, -40.0, -100.0]], dtype=dtype, requires_grad=True)
    ones = torch.ones_like(x)
    (ours,) = torch.autograd.grad(implementation.module.asymmetric_loss(x, ones, reduction="sum"), x)
    (clamped,) = torch.autograd.grad(timm_asymmetric(x, ones, 4.0, 1.0, 0.05).sum(), x)
    assert torch.allclose(ours, -ones, rtol=1e-5) and (clamped[0, 1:].abs() < 1e-6).all() and clamped[0, 0] < -0.9


# Loss and derivative at a logit of 0.5, by formulas.textbook_point in 50 digits.
POINTS = [
    ("sigmoid_focal_loss", 1.0, {"alpha": None, "gamma": 2.0, "label_smoothing": 0.1}),
    ("quality_focal_loss", 0.7, {"beta": 2.0}),
    ("quality_focal_loss", 0.0, {"beta": 1.5}),
    ("varifocal_loss", 0.7, {"alpha": 0.75, "gamma": 2.0}),
    ("varifocal_loss", 0.0, {"alpha": 0.75, "gamma": 2.0}),
    ("asymmetric_loss", 0.0, {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}),
    ("asymmetric_loss", 1.0, {"gamma_neg": 4.0, "gamma_pos": 1.0, "clip": 0.05}),
]


@implementations
@pytest.mark.parametrize("loss, target, parameters", POINTS, ids=str)
@pytest.mark.parametrize("logit", [0.5, -0.5, 6.0, -6.0])
def test_the_papers_formulas_come_out_in_50_digits(
    logit: float, loss: str, target: float, parameters: dict, implementation: Implementation
) -> None:
    x = torch.tensor([[logit]], dtype=torch.float64, requires_grad=True)
    value = getattr(implementation.module, loss)(
        x, torch.tensor([[target]], dtype=torch.float64), reduction="sum", **parameters
    )
    (slope,) = torch.autograd.grad(value, x)
    assert (value.item(), slope.item()) == pytest.approx(textbook_point(loss, logit, target, **parameters), rel=1e-13)


@implementations
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("arguments", [(), (0.75,), (-1,), (0.25, 1.5), (-1, 0)], ids=str)
def test_torchvisions_positional_calls_give_torchvisions_numbers(
    arguments: tuple, reduction: str, implementation: Implementation
) -> None:
    x, t = torch.randn(30, 7, dtype=torch.float64) * 2, torch.rand(30, 7, dtype=torch.float64)
    full = (*arguments, *(0.25, 2)[len(arguments) :], reduction)
    assert torch.allclose(implementation.module.sigmoid_focal_loss(x, t, *full), torchvision(x, t, *full), rtol=1e-10)


def logit_of(p: float) -> float:
    return math.log(p / (1 - p))


@implementations
@pytest.mark.parametrize("p_t, times", [(0.9, 100.0), (0.9683772, 1000.0)])
def test_an_easy_example_weighs_as_much_less_than_under_cross_entropy_as_the_paper_says(
    p_t: float, times: float, implementation: Implementation
) -> None:
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

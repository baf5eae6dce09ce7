# Owns: figures and formulas of other libraries that the softmax focal loss reproduces.
# Must not know: how they are computed here.
from __future__ import annotations

import focal_ext
import pytest
import torch
import torch.nn.functional as F
from bench import peers
from cases import IMPLEMENTATIONS, Implementation

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
X = torch.randn(40, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
Y = torch.randint(7, (40,), generator=torch.Generator().manual_seed(1))


@implementations
@pytest.mark.parametrize(
    "logits, labels, loss", [([[1, 0], [0, 1]], [0, 1], 0.00566451), ([[1, 0, -1], [0, 1, 2]], [2, 1], 0.34956904)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_mmcvs_own_test_values_come_out(
    logits: list, labels: list, loss: float, dtype: torch.dtype, implementation: Implementation
) -> None:
    x = torch.tensor(logits, dtype=dtype)
    assert implementation.module.softmax_focal_loss(x, torch.tensor(labels), 0.25).item() == pytest.approx(
        loss, abs=1e-7
    )
    dense = F.one_hot(torch.tensor(labels), x.shape[-1]).to(dtype)
    assert implementation.module.softmax_focal_loss(x, dense, 0.25).item() == pytest.approx(loss, abs=1e-7)


@implementations
@pytest.mark.parametrize("gamma, alpha", [(2.0, 0.25), (1.5, 0.9), (0.0, 1.0)])
def test_mmcvs_formula_with_and_without_weights_of_classes(
    gamma: float, alpha: float, implementation: Implementation
) -> None:
    """mmcv.ops.softmax_focal_loss with reduction="mean": weight[label] multiplies a row, the rows divide the sum."""
    ours, rows = implementation.module.softmax_focal_loss, alpha * peers.softmax_gather(X, Y, gamma)
    assert torch.allclose(ours(X, Y, alpha, gamma), rows.mean(), rtol=1e-12)
    weight = torch.rand(7, dtype=torch.float64) * 3
    assert torch.allclose(ours(X, Y, alpha * weight, gamma), (weight[Y] * rows).mean(), rtol=1e-12)


@implementations
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("targets", ["ids", "dense"])
def test_gamma_0_is_torchs_cross_entropy(
    targets: str, reduction: str, smoothing: float, implementation: Implementation
) -> None:
    y = torch.where(torch.arange(40) % 5 == 0, -100, Y)
    options = {"reduction": reduction, "label_smoothing": smoothing}
    if targets == "dense":
        y, options = torch.softmax(X.flip(0), -1), {"reduction": reduction}
    ours, theirs = X.clone().requires_grad_(), X.clone().requires_grad_()
    loss, want = (
        implementation.module.softmax_focal_loss(ours, y, gamma=0.0, **options),
        F.cross_entropy(theirs, y, **options),
    )
    assert torch.allclose(loss, want, rtol=1e-12)
    upstream = torch.rand(loss.shape, dtype=torch.float64)
    assert torch.allclose(
        *(torch.autograd.grad(v, leaf, upstream)[0] for v, leaf in ((loss, ours), (want, theirs))),
        rtol=1e-11,
        atol=1e-15,
    )


@implementations
def test_the_tutorial_form_averages_over_classes_too(implementation: Implementation) -> None:
    tutorial = peers.softmax_dense(X, F.one_hot(Y, 7)).mean()
    assert torch.allclose(implementation.module.softmax_focal_loss(X, Y) / 7, tutorial, rtol=1e-12)


@implementations
def test_kornias_form_has_the_classes_second_and_no_average(implementation: Implementation) -> None:
    """kornia.losses.focal_loss of images: -alpha (1 - p)^gamma log p of the one-hot; here the sum of its classes."""
    x, y = torch.randn(2, 5, 4, 3, dtype=torch.float64), torch.randint(5, (2, 4, 3))
    kornia = 0.5 * peers.softmax_dense(x.movedim(1, -1), F.one_hot(y, 5)).sum(-1)
    assert torch.allclose(
        implementation.module.softmax_focal_loss(x.movedim(1, -1), y, 0.5, reduction="none"), kornia, rtol=1e-12
    )


@implementations
def test_two_classes_are_the_sigmoid_loss_of_their_difference(implementation: Implementation) -> None:
    x, y = X[:, :2], Y % 2
    sigmoid = implementation.module.sigmoid_focal_loss((x[:, 1] - x[:, 0])[:, None], y.double()[:, None], None, 2.0)[
        :, 0
    ]
    assert torch.allclose(implementation.module.softmax_focal_loss(x, y, reduction="none"), sigmoid, rtol=1e-12)


def test_the_module_is_the_function() -> None:
    module = focal_ext.SoftmaxFocalLoss(
        alpha=torch.rand(7), gamma=1.5, label_smoothing=0.1, reduction="sum", normalizer="positives"
    )
    function = focal_ext.softmax_focal_loss(X, Y, module.alpha, 1.5, "sum", normalizer="positives", label_smoothing=0.1)
    assert torch.equal(module(X, Y), function) and "label_smoothing=0.1" in repr(module) and module.state_dict() == {}
    weight = torch.rand(40)
    assert torch.equal(focal_ext.SoftmaxFocalLoss()(X, Y, weight), focal_ext.softmax_focal_loss(X, Y, weight=weight))
    with pytest.raises(ValueError, match="^gamma: "):
        focal_ext.SoftmaxFocalLoss(gamma=-1.0)

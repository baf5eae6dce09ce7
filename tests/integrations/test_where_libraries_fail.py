# Owns: inputs at which a library's loss or gradient is wrong; ours is asserted against float64.
# Must not know: detectors.
from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
import torch.nn.functional as F
from focal_ext import compat
from torch import Tensor

Loss = Callable[[Tensor, Tensor, float], Tensor]


def mmdet(library: object) -> Loss:
    return lambda x, t, gamma: library.FocalLoss(gamma=gamma, alpha=0.25, reduction="none")(x, t)


def per_box(library: object) -> Loss:
    # undoes its mean over dimension 1
    return lambda x, t, gamma: library.sigmoid_focal_loss(x, t, 1 / x.shape[1], 0.25, gamma)


def effdet(library: object) -> Loss:
    return lambda x, t, gamma: library.new_focal_loss(x, t, 0.25, gamma, 1.0, 0.0)


def plain(library: object) -> Loss:
    return lambda x, t, gamma: library.sigmoid_focal_loss(x, t, 0.25, gamma)


LOSSES: dict[str, tuple[Loss, Loss]] = {
    "torchvision": (plain(compat.torchvision), plain(peers.torchvision)),
    "fvcore": (plain(compat.fvcore), plain(peers.fvcore)),
    "mmdet": (mmdet(compat.mmdet), mmdet(peers.mmdet)),
    "effdet": (effdet(compat.effdet), effdet(peers.effdet)),
    "transformers": (per_box(compat.detr), per_box(peers.transformers)),
}


def exact(x: Tensor, t: Tensor, gamma: float) -> Tensor:
    """In float64 from log-sigmoids: nothing is subtracted from 1."""
    z = x.double() * (1 - 2 * t.double())
    return (0.25 * t.double() + 0.75 * (1 - t.double())) * torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)


def gradient(loss: Loss, x: Tensor, t: Tensor, gamma: float) -> Tensor:
    leaf = x.detach().clone().requires_grad_()
    return torch.autograd.grad(loss(leaf, t, gamma).sum(), leaf)[0]


@pytest.mark.parametrize("name", LOSSES)
def test_gamma_below_one_gives_nan_there_and_the_limit_here(name: str) -> None:
    """The derivative of (1 - p_t)^gamma is infinite at p_t = 1, and infinity times the zero that multiplies it is
    NaN."""
    ours, theirs = LOSSES[name]
    x, t = torch.tensor([[20.0, -3.0]]), torch.tensor([[1.0, 0.0]])  # at 20, p_t rounds to 1
    assert gradient(theirs, x, t, 0.5).isnan().any()
    torch.testing.assert_close(
        gradient(ours, x, t, 0.5).double(), gradient(exact, x.double(), t, 0.5), rtol=2e-6, atol=0
    )


@pytest.mark.parametrize("name", ["torchvision", "mmdet", "effdet", "transformers"])
def test_float16_loses_the_gradient_of_easy_anchors_there(name: str) -> None:
    """p_t of a negative at -7.3 is 1 - 6.7e-4, which float16 holds to steps of 2^-11 = 4.9e-4. A loss scale, as a
    GradScaler's, keeps the results in range; ours are then subnormal numbers of float16, of 2^-9."""
    ours, theirs = LOSSES[name]
    x, t, scale = torch.full((1, 4), -7.3).half(), torch.zeros(1, 4).half(), 2.0**15
    right = gradient(exact, x.double(), t, 2.0) * scale
    for loss, is_good in ((ours, True), (theirs, False)):
        found = gradient(lambda *call, loss=loss: loss(*call) * scale, x, t, 2.0)
        assert (float(((found.double() - right) / right).abs().max()) < 2**-9) == is_good


def test_effdets_legacy_modulator_overflows_for_a_lost_positive() -> None:
    """exp(-x) is infinite in float32 below -88, the modulator then 0 instead of 1, and the worst mistakes cost
    nothing."""
    x, t = torch.tensor([[-95.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    ours, theirs = (library.focal_loss_legacy(x, t, 0.25, 2.0, 1.0) for library in (compat.effdet, peers.effdet))
    assert not theirs[0, 0] > 1
    torch.testing.assert_close(ours.double(), exact(x, t, 2.0), rtol=1e-6, atol=0)


def test_fvcore_rounds_float64_to_float32() -> None:
    x, t = torch.tensor([[-6.3]], dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    ours, theirs = (library.sigmoid_focal_loss(x, t, 0.25) for library in (compat.fvcore, peers.fvcore))
    assert theirs.dtype == torch.float32 and ours.dtype == torch.float64
    torch.testing.assert_close(ours, exact(x, t, 2.0), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    "options, channels, count",
    [({}, 1, 2), ({"use_softmax": True, "alpha": 0.3}, 3, 1)],
    ids=["one channel", "softmax alpha"],
)
def test_monai_warns_of_options_that_it_ignores_and_so_do_we(
    options: dict[str, Any], channels: int, count: int
) -> None:
    x, t = torch.randn(2, channels, 4, 4), torch.randint(0, max(channels, 2), (2, 1, 4, 4))
    found = []
    for library in (compat.monai, peers.monai):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            value = library.FocalLoss(include_background=False, to_onehot_y=True, **options)(x, t)
        found.append((value, [(str(w.message), w.filename) for w in caught if w.category is UserWarning]))
    assert [text for text, _ in found[0][1]] == [text for text, _ in found[1][1]] and len(found[0][1]) == count
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=0)

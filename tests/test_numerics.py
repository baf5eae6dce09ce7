# Owns: the claims about accuracy, bare formula, over samples of float32 and over all of bfloat16 and float16.
# Must not know: shapes, layouts, weights (test_values.py). Every float32 is in exhaustive.py.
from __future__ import annotations

import pytest
import torch
from cases import EVERY, GAMMAS, IMPLEMENTATIONS, PUBLIC, Implementation
from oracle import Closed, hard, soft
from rounding import FORMATS, error_in_ulp, rounded
from tolerances import CLAIMS, SIGMOID
from torch import Tensor

LIMIT_BITS = 1123024896  # the bit pattern of float32 120


def stratified(strata: int, seed: int = 1) -> Tensor:
    """float32 logits in [-120, 120]: one random bit pattern of each of `strata` equal ranges of patterns, for either
    sign."""
    rng = torch.Generator().manual_seed(seed)
    width = (LIMIT_BITS + 1) / strata
    bits = (
        ((torch.arange(strata) + torch.rand(strata, generator=rng, dtype=torch.float64)) * width)
        .long()
        .clamp(max=LIMIT_BITS)
    )
    magnitude = bits.to(torch.int32).view(torch.float32)
    return torch.cat([magnitude, -magnitude])


PATTERNS = stratified(2**19 // EVERY)  # 2^20 logits: a mean over them estimates the mean over all patterns
LINEAR = (
    torch.rand(2**18 // EVERY, generator=torch.Generator().manual_seed(2)) - 0.5
) * 240  # where a detector's logits are


def loss_and_gradient(
    inputs: Tensor, targets: Tensor, gamma: float, implementation: Implementation = PUBLIC, **options: float
) -> tuple[Tensor, Tensor]:
    """The bare formula: no alpha, no weight, not reduced; C = 1."""
    leaf = inputs[:, None].clone().requires_grad_()
    loss = implementation.module.sigmoid_focal_loss(leaf, targets, None, gamma, **options)
    return loss.detach()[:, 0], torch.autograd.grad(loss.sum(), leaf)[0][:, 0]


def hard_errors(inputs: Tensor, label: int, gamma: float) -> dict[str, Tensor]:
    """ULP errors at class ids: label 0 is a positive, -1 background."""
    loss, gradient = loss_and_gradient(inputs, torch.full((len(inputs),), label), gamma)
    sign = 1 if label < 0 else -1
    want = hard(sign * inputs.double(), gamma)
    return {"loss": error_in_ulp(loss, want.loss), "gradient": error_in_ulp(gradient, sign * want.gradient)}


@pytest.mark.parametrize("label", [-1, 0], ids=["negative", "positive"])
@pytest.mark.parametrize("gamma", (*GAMMAS, 1.5))  # a square root on the CPU
def test_float32_hard_labels_stay_within_the_claimed_ulp(gamma: float, label: int) -> None:
    claim = CLAIMS[PUBLIC.name, "hard"]
    for what, errors in hard_errors(torch.cat([PATTERNS, LINEAR]), label, gamma).items():
        assert errors.max() <= claim.units, f"{what} at {torch.cat([PATTERNS, LINEAR])[errors.argmax()].item()!r}"
        assert errors[: len(PATTERNS)].mean() < CLAIMS[PUBLIC.name, "mean"].units, what


def soft_targets(count: int) -> Tensor:
    """Uniform, with a quarter each near 0 and near 1, the ends themselves, and 1 - 2^-18 to 1 - 2^-24."""
    rng = torch.Generator().manual_seed(3)
    t = torch.rand(count, generator=rng)
    near = t * 10 ** (-7 * torch.rand(count, generator=rng))
    where = torch.randint(0, 4, (count,), generator=rng)
    t = torch.where(where == 0, near, torch.where(where == 1, 1 - near, t))
    t[::50], t[1::50] = 0.0, 1.0
    t[2::50] = 1 - 2.0 ** -torch.randint(18, 25, t[2::50].shape, generator=rng)
    return t


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
@pytest.mark.parametrize("label_smoothing", (0.0, 1e-9, 1e-6, 1e-3, 0.1, 1.0))
@pytest.mark.parametrize("gamma", (*GAMMAS, 1.5))  # a square root on the CPU
def test_float32_soft_targets_stay_within_the_claimed_share_of_their_terms(
    gamma: float, label_smoothing: float, implementation: Implementation
) -> None:
    """Smoothed ones too: 1 - t' of a target near 1 is not the rest of t' = t (1-s) + s/2 rounded."""
    x = torch.cat([PATTERNS[::4], LINEAR])
    t = soft_targets(len(x))
    loss, gradient = loss_and_gradient(x, t[:, None], gamma, implementation, label_smoothing=label_smoothing)
    want = soft(x.double(), t.double(), gamma, label_smoothing)
    lost = SIGMOID.units if implementation.name == "reference" else 1.0
    # a subnormal power is rounded before gamma ce multiplies it
    unit, subnormal = (
        2.0**-23,
        2.0**-149 * lost * 120 * (1 + gamma),
    )
    claim = CLAIMS[implementation.name, "soft"].units
    off = (loss.double() - want.loss).abs() - subnormal
    assert (off <= claim * unit * want.loss).all(), f"{(off / want.loss / unit).max():.1f} units"
    off = (gradient.double() - want.gradient).abs() - subnormal
    assert (off <= claim * unit * want.magnitude).all(), f"{(off / want.magnitude / unit).max():.1f} units"


def all_patterns(dtype: torch.dtype) -> Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)


def exact_everywhere(z: Tensor, gamma: float) -> Closed:
    """The closed form with its limits at infinite logits."""
    want = hard(z, gamma)
    winning, losing = z == -torch.inf, z == torch.inf
    loss = torch.where(winning, 0.0, torch.where(losing, torch.inf, want.loss))
    gradient = torch.where(winning, 0.0, torch.where(losing, 1.0, want.gradient))
    return Closed(loss, gradient, gradient)


@pytest.mark.parametrize("label", [-1, 0], ids=["negative", "positive"])
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_every_half_precision_logit_gives_the_correctly_rounded_result(
    dtype: torch.dtype, gamma: float, label: int
) -> None:
    x = all_patterns(dtype)
    sign, targets = (1 if label < 0 else -1), torch.full((len(x),), label)
    want = exact_everywhere(sign * x.double(), gamma)
    loss, gradient = loss_and_gradient(x, targets, gamma)
    leaf = x[:, None].clone().requires_grad_()
    total = PUBLIC.module.sigmoid_focal_loss(leaf, targets, None, gamma, "sum", normalizer=7.0)
    (normalised,) = torch.autograd.grad(total, leaf)

    share = CLAIMS[str(dtype), "correctly rounded"].units
    for what, got, exact in (
        ("loss", loss, want.loss),
        ("gradient", gradient, sign * want.gradient),
        ("normalised", normalised[:, 0], sign * want.gradient / 7),
    ):
        errors = error_in_ulp(got, rounded(exact, dtype))
        right = (errors == 0).double().mean()
        assert right >= share, f"{what}: {right:.4%} correctly rounded"
        assert errors.max() <= 1, f"{what} at {x[errors.argmax()].item()!r}"


@pytest.mark.parametrize("gamma", GAMMAS)
def test_half_precision_losses_stay_within_the_claimed_error_before_they_are_rounded(gamma: float) -> None:
    x = all_patterns(torch.bfloat16)[3::16]
    x = x[x.abs() < 40 / (1 + gamma)]  # losses are normal numbers
    label = torch.tensor([-1])
    loss = torch.stack([PUBLIC.module.sigmoid_focal_loss(logit[None, None], label, None, gamma, "sum") for logit in x])
    want = hard(x.double(), gamma).loss
    units = (loss.double() - want).abs() / want * 2**23
    assert loss.dtype == torch.float32 and units.max() <= CLAIMS[PUBLIC.name, "half"].units, (
        f"{units.max():.1f} units at {x[units.argmax()].item()!r}"
    )


def test_distances_in_ulp_are_those_of_the_formats() -> None:
    one = torch.tensor([1.0, 1.5, 2.0, 1e-50, 0.0], dtype=torch.float64)
    for dtype, (_, smallest) in FORMATS.items():
        got = one.to(dtype)
        up = torch.nextafter(got, torch.full_like(got, torch.inf))
        assert error_in_ulp(up[:3], one[:3]).tolist() == [1, 1, 1]
        assert float(up[4]) == 2.0**smallest
    assert (
        error_in_ulp(
            torch.tensor([float("nan"), 1.0, float("inf")]), torch.tensor([1.0, float("nan"), 1.0]).double()
        ).tolist()
        == [torch.inf] * 3
    )
    assert error_in_ulp(
        torch.tensor([float("nan"), float("inf")]), torch.tensor([float("nan"), float("inf")]).double()
    ).tolist() == [0, 0]
    halfway = 1 + 2.0**-8 + 2.0**-40  # by way of float32 it becomes a tie and falls to 1
    assert rounded(torch.tensor([halfway], dtype=torch.float64), torch.bfloat16).item() == 1 + 2.0**-7

# Owns: what ignore_index does to dense targets, and what integers among them may be, on every route; and the same by
# the CUDA kernels.
# Must not know: formulas; values with everything else at work, which are rows of the tables of cases.
from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import focal_ext
import pytest
import torch
from cuda_host import build
from cuda_host.ops import HostOps
from focal_ext import _autograd, reference
from pairwise import pairwise, taking_turns
from torch import Tensor

LOSSES = reference.__all__
ROW = "softmax_focal_loss"  # whose rows are ignored as a whole
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DENSE = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint16,
    torch.float32,
    torch.bfloat16,
    torch.float64,
)
losses = pytest.mark.parametrize("loss", LOSSES)


def with_cuda_kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if build.why_impossible():
        pytest.skip(f"the kernels cannot be compiled here: {build.why_impossible()}")
    monkeypatch.setattr(_autograd, "ops", HostOps(build.load("plain"), max_blocks=3))
    return focal_ext


ROUTES: dict[str, Callable[[pytest.MonkeyPatch], ModuleType]] = {
    "fused": lambda _: focal_ext,
    "reference": lambda _: reference,
    "CUDA kernels": with_cuda_kernels,
}


@pytest.fixture(params=ROUTES)
def module(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return ROUTES[request.param](monkeypatch)


def ignored_index(dtype: torch.dtype) -> int:
    return -7 if dtype in (torch.int8, torch.int16) else 255


def problem(
    dtype: torch.dtype = torch.float32, targets: torch.dtype = torch.float32, shape: tuple[int, int] = (150, 9)
) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of which the ignored are not finite, targets, and where those are ignored; more than a block of
    elements."""
    rng = torch.Generator().manual_seed(3)
    there = torch.rand(shape, generator=rng) < 0.1
    x = (torch.randn(shape, generator=rng) * 4).to(dtype)
    odd = torch.tensor([torch.nan, torch.inf, -torch.inf]).to(dtype)[torch.randint(3, shape, generator=rng)]
    t = (torch.rand(shape, generator=rng) < 0.2).to(targets)
    t = torch.where(
        there, torch.tensor(ignored_index(targets)), t.to(torch.int64) if targets is torch.uint16 else t
    ).to(targets)
    return torch.where(there, odd, x), t, there


def run(module: ModuleType, loss: str, x: Tensor, t: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    value = getattr(module, loss)(leaf, t, **options)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def kept_of(loss: str, there: Tensor) -> Tensor:
    return ~there.any(-1) if loss == ROW else ~there


def without(loss: str, x: Tensor, t: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and float targets with something harmless in the places of the ignored."""
    return x.where(~there, 0.0), t.to(torch.float64).where(~there, 0.0).to(x.dtype)


@taking_turns({"reduction": ("none", "sum", "mean")}, loss=LOSSES, dtype=DTYPES, route=ROUTES)
def test_an_ignored_element_counts_0_whatever_its_logit(
    loss: str, dtype: torch.dtype, route: str, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ROUTES[route](monkeypatch)
    x, t, there = problem(dtype, torch.uint8 if reduction == "mean" else dtype)
    kept = kept_of(loss, there)
    value, gradient = run(module, loss, x, t, reduction=reduction, ignore_index=255)
    losses, gradients = run(reference, loss, *(v.double() for v in without(loss, x, t, there)), reduction="none")
    want = losses.where(kept, 0.0)
    want = {"none": want, "sum": want.sum(), "mean": want.sum() / kept.sum()}[reduction]
    divisor = kept.sum() if reduction == "mean" else 1
    kept_logits = kept[:, None].expand(x.shape) if loss == ROW else kept
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 2e-5, "atol": 1e-6}
    torch.testing.assert_close(value.double(), want, **tolerance)
    torch.testing.assert_close(gradient.double(), (gradients / divisor).where(kept_logits, 0.0), **tolerance)
    assert (gradient[~kept_logits] == 0).all()


@pairwise(loss=LOSSES, targets=DENSE, route=ROUTES)
def test_every_dtype_of_targets_holds_the_ignored(
    loss: str, targets: torch.dtype, route: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ROUTES[route](monkeypatch)
    x, t, there = problem(targets=targets)
    got = run(module, loss, x, t, reduction="mean", ignore_index=ignored_index(targets))
    want = run(
        module, loss, x, torch.where(there, 255.0, without(loss, x, t, there)[1]), reduction="mean", ignore_index=255
    )
    assert all(torch.equal(a, b) for a, b in zip(got, want))


@taking_turns({"dtype": (torch.float32, torch.bfloat16)}, loss=LOSSES, route=ROUTES)
def test_the_mean_of_nothing_is_0(loss: str, route: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ROUTES[route](monkeypatch)
    x = torch.full((40, 3), torch.nan, dtype=dtype)
    for targets in (dtype, torch.uint8, torch.int64):
        value, gradient = run(module, loss, x, torch.full(x.shape, 7, dtype=targets), reduction="mean", ignore_index=7)
        assert value == 0 and not gradient.count_nonzero()


@losses
def test_what_is_ignored_may_be_a_label(loss: str, module: ModuleType) -> None:
    """0, which tiles and blocks of negatives are made of, and 1."""
    x = torch.randn(700, 8, generator=torch.Generator().manual_seed(0))
    t = (torch.arange(x.numel()) % 701 == 0).reshape(x.shape)
    plain = run(module, loss, x, t, reduction="sum", ignore_index=None)[1]
    for ignored in (0, 1):
        there = t == bool(ignored)
        there = there.any(-1, keepdim=True).expand(x.shape) if loss == ROW else there
        for targets in (torch.bool, torch.uint8, torch.int64, torch.float32):
            gradient = run(module, loss, x, t.to(targets), reduction="sum", ignore_index=ignored)[1]
            assert not gradient[there].count_nonzero()
            torch.testing.assert_close(gradient, plain.where(~there, 0.0), rtol=1e-5, atol=1e-7)


@losses
def test_a_weight_that_is_not_finite_changes_nothing(loss: str, module: ModuleType) -> None:
    x, t, there = problem(targets=torch.uint8)
    kept = kept_of(loss, there)
    weight = torch.where(kept, 0.5, torch.nan)
    value, gradient = run(module, loss, x, t, reduction="none", ignore_index=255, weight=weight)
    assert (
        value.isfinite().all() and gradient.isfinite().all() and (value[~kept] == 0).all() and (value[kept] != 0).any()
    )


@losses
def test_an_overwritten_gradient_is_that_of_the_plain_call(loss: str) -> None:
    x, t, _ = problem()
    leaf = x.clone().requires_grad_()
    logits = leaf * 1
    getattr(focal_ext, loss)(logits, t, reduction="mean", ignore_index=255, overwrite_inputs=True).backward()
    assert torch.equal(leaf.grad, run(focal_ext, loss, x, t, reduction="mean", ignore_index=255)[1])


@losses
def test_second_derivatives_and_transforms_ignore_too(loss: str) -> None:
    x, t, there = problem(torch.float64, torch.float64, (6, 4))
    kept = kept_of(loss, there)
    kept = kept[:, None].expand(x.shape) if loss == ROW else kept
    function = partial(getattr(focal_ext, loss), reduction="mean", ignore_index=255)
    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(function(leaf, t), leaf, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), leaf)[0]
    transformed = torch.func.grad(function)(x, t)
    for gradient in (first.detach(), second, transformed):
        assert gradient.isfinite().all() and not gradient[~kept].count_nonzero() and gradient[kept].count_nonzero()
    torch.testing.assert_close(transformed, first.detach())
    batched = torch.func.vmap(partial(getattr(focal_ext, loss), reduction="sum", ignore_index=255))(
        x[:, None], t[:, None]
    )
    assert batched.isfinite().all() and (batched.sum() / (kept_of(loss, there)).sum()).item() == pytest.approx(
        function(x, t).item()
    )


@losses
def test_a_compiled_graph_ignores_too(loss: str) -> None:
    torch.compiler.reset()
    for targets in (torch.float32, torch.int64):
        x, t, _ = problem(targets=targets)
        function = partial(getattr(focal_ext, loss), reduction="mean", ignore_index=255)
        leaf = x.clone().requires_grad_()
        value = torch.compile(function, backend="eager", fullgraph=True)(leaf, t)
        got = value.detach(), torch.autograd.grad(value, leaf)[0]
        assert all(
            torch.equal(a, b) for a, b in zip(got, run(focal_ext, loss, x, t, reduction="mean", ignore_index=255))
        )


BAD = (
    (torch.uint8, 3),
    (torch.uint8, 255),
    (torch.int8, -1),
    (torch.int32, 256),
    (torch.int64, 2**40),
    (torch.uint16, 2),
    (torch.int64, -2),
)


@pairwise(loss=LOSSES, bad=BAD, route=("fused", "reference"), reduction=("none", "sum"))
def test_an_integer_that_is_no_label_is_named(
    loss: str, bad: tuple[torch.dtype, int], route: str, reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, (targets, value) = ROUTES[route](monkeypatch), bad
    t = torch.zeros(5, 4, dtype=torch.int64)
    t[3, 1] = t[4, 0] = value
    with pytest.raises(
        ValueError,
        match=(
            rf"^targets: dense integers must be 0 or 1, or ignore_index=9, got {value} at \(3, 1\); use "
            rf"ignore_index={value} to skip it, or float"
        ),
    ):
        getattr(module, loss)(torch.randn(5, 4), t.to(targets), reduction=reduction, ignore_index=9)


@losses
@pytest.mark.parametrize("targets, value", BAD)
def test_where_values_are_not_read_it_is_nan(
    loss: str, targets: torch.dtype, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    t = torch.zeros(5, 4, dtype=torch.int64)
    t[3, 1] = value
    bad = torch.zeros(5, 4, dtype=torch.bool)
    bad[3, 1 if loss != ROW else slice(None)] = True
    function = partial(getattr(focal_ext, loss), reduction="sum", ignore_index=9)
    assert torch.equal(torch.func.grad(function)(torch.randn(5, 4), t.to(targets)).isnan(), bad)
    module = with_cuda_kernels(monkeypatch)
    monkeypatch.setattr(focal_ext._arguments, "values_are_readable", lambda *_: False)
    leaf = torch.randn(5, 4, requires_grad=True)
    loss_map = focal_ext._autograd.dispatch(
        *getattr(module, loss).__wrapped__(leaf, t.to(targets), reduction="none", ignore_index=9)[:4]
    )
    assert torch.equal(loss_map.isnan(), bad if loss != ROW else bad[:, 1])
    assert torch.equal(torch.autograd.grad(loss_map.sum(), leaf)[0].isnan(), bad)


@losses
def test_float_targets_are_not_checked(loss: str) -> None:
    assert getattr(focal_ext, loss)(torch.randn(5, 4), torch.full((5, 4), 1.5), reduction="sum").isfinite()

# Owns: rows that a review left behind: memory that is shared, types that almost fit, limits where a factor underflows.
# Must not know: formulas (the float64 reference is the oracle).
from __future__ import annotations

import focal_ext
import numpy as np
import pytest
import torch
from cases import IMPLEMENTATIONS, PUBLIC, Implementation
from focal_ext import _factors
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

loss = focal_ext.sigmoid_focal_loss
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
IDS = torch.tensor([0, -1, -2, 3])


class Subclass(torch.Tensor):
    """A subclass without operations of its own, as many libraries have."""


VIEWS = {"slice": lambda p: p[:, :], "view": lambda p: p.view(2, 2, 3).view(4, 3), "permute": lambda p: p.t().t()}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_a_view_of_a_leaf_that_requires_grad_is_not_overwritten(view) -> None:
    leaf = torch.randn(4, 3, requires_grad=True)
    with pytest.raises(ValueError, match="view of one"):
        loss(view(leaf), IDS, reduction="sum", overwrite_inputs=True)


def test_targets_that_overlap_overwritten_logits_at_another_place_are_refused() -> None:
    logits = torch.randn(401, 5, requires_grad=True) * 1
    with pytest.raises(ValueError, match="share memory"):
        loss(logits[1:], logits.detach()[:400], reduction="sum", overwrite_inputs=True)
    # element upon element is fine
    assert torch.isfinite(loss(logits, logits.detach(), reduction="sum", overwrite_inputs=True))


@pytest.mark.native
def test_permuted_rows_are_overwritten_in_place() -> None:
    memory = torch.randn(6, 5, 4, requires_grad=True) * 1
    logits, ids = memory.permute(1, 0, 2), torch.randint(-1, 4, (5, 6))
    copy = logits.detach().clone().requires_grad_()
    loss(copy, ids, reduction="sum").backward()
    gradient = torch.autograd.grad(loss(logits, ids, reduction="sum", overwrite_inputs=True), memory)[0].permute(
        1, 0, 2
    )
    assert gradient.data_ptr() == memory.data_ptr()
    assert torch.equal(gradient, copy.grad)


def test_overwrite_inputs_asks_nothing_of_calls_without_gradient() -> None:
    leaf = torch.randn(4, 3, requires_grad=True)
    with torch.no_grad():
        loss(leaf, IDS, reduction="sum", overwrite_inputs=True)
    with torch.inference_mode():
        loss(torch.randn(4, 3), IDS, reduction="sum", overwrite_inputs=True)
    loss(
        torch.randn(7, 0, 3, requires_grad=True).permute(2, 1, 0) * 1,
        torch.zeros(3, 0).long(),
        reduction="sum",
        overwrite_inputs=True,
    )


@implementations
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(("x", "t", "gamma"), ((-np.inf, 1e-30, 2.0), (np.inf, 0.999, 50.0), (-np.inf, 1e-5, 50.0)))
def test_an_infinite_loss_stays_infinite_where_its_modulator_underflows(
    implementation: Implementation, dtype: torch.dtype, x: float, t: float, gamma: float
) -> None:
    logit = torch.tensor([[x]], dtype=dtype, requires_grad=True)
    value = implementation.module.sigmoid_focal_loss(logit, torch.full((1, 1), t, dtype=dtype), None, gamma, "sum")
    assert value == np.inf
    assert torch.isfinite(torch.autograd.grad(value, logit)[0]).all()


@implementations
@pytest.mark.parametrize("gamma", (17.0, 1e4, 1e18, 1e30))
def test_dense_and_id_targets_agree_at_a_huge_gamma(implementation: Implementation, gamma: float) -> None:
    logits = torch.tensor([[38.0, 5.0, 20.0, -3.0]], dtype=torch.float64, requires_grad=True)
    results = []
    for targets in (torch.tensor([-1]), torch.zeros(1, 4, dtype=torch.float64)):
        value = implementation.module.sigmoid_focal_loss(logits, targets, None, gamma, "sum")
        results.append(torch.cat([torch.autograd.grad(value, logits)[0].flatten(), value.detach()[None]]))
    # the same logarithm times gamma, in another order of terms
    torch.testing.assert_close(*results, rtol=1e-13, atol=0)
    assert float(results[0].abs().max()) < 64


@implementations
def test_nothing_divided_by_a_normalizer_of_zero_is_zero(implementation: Implementation) -> None:
    assert (
        implementation.module.sigmoid_focal_loss(
            torch.randn(0, 4), torch.zeros(0).long(), reduction="sum", normalizer=torch.tensor(0.0)
        )
        == 0
    )


@implementations
def test_a_subclass_is_a_tensor(implementation: Implementation) -> None:
    logits = torch.randn(4, 3).as_subclass(Subclass).requires_grad_()
    with pytest.raises(ValueError, match="class id 7 at anchor 2"):
        implementation.module.sigmoid_focal_loss(logits, torch.tensor([0, 1, 7, 2]))
    value = implementation.module.sigmoid_focal_loss(logits, IDS, reduction="sum")
    value.backward()
    assert torch.isfinite(value) and logits.grad is not None


def test_class_ids_made_in_inference_mode_can_be_trained_on() -> None:
    with torch.inference_mode():
        ids = IDS.clone()
    logits = torch.randn(4, 3, requires_grad=True)
    loss(logits, ids, reduction="sum").backward()
    assert logits.grad is not None


@implementations
def test_numpy_numbers_are_numbers(implementation: Implementation) -> None:
    logits = torch.randn(4, 3)
    value = implementation.module.sigmoid_focal_loss(
        logits, IDS, np.float64(0.25), np.int64(2), "sum", normalizer=np.float32(3), ignore_index=np.int64(-2)
    )
    assert torch.equal(
        value, implementation.module.sigmoid_focal_loss(logits, IDS, 0.25, 2, "sum", normalizer=3, ignore_index=-2)
    )
    per_class = np.array([0.25, 0.5, 0.75])
    assert torch.equal(
        implementation.module.sigmoid_focal_loss(logits, IDS, per_class),
        implementation.module.sigmoid_focal_loss(logits, IDS, per_class.tolist()),
    )


SPARSE = {"inputs": lambda x: (x.to_sparse(), IDS), "targets": lambda x: (x, torch.rand(4, 3).to_sparse())}


@pytest.mark.parametrize("argument", SPARSE)
def test_sparse_tensors_are_refused_by_name(argument: str) -> None:
    with pytest.raises(TypeError, match=rf"{argument}: must be a dense strided tensor, got torch.sparse_coo"):
        loss(*SPARSE[argument](torch.randn(4, 3)))


@pytest.mark.native
@pytest.mark.parametrize("reduction", ("none", "sum"))
def test_a_compiled_loss_refuses_create_graph_instead_of_a_wrong_second_derivative(reduction: str) -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    compiled = torch.compile(
        lambda x: PUBLIC.module.sigmoid_focal_loss(x, IDS, reduction=reduction).sum(), backend="eager"
    )
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(compiled(logits) ** 2, logits, create_graph=True)


def test_a_module_moves_its_tensors_checks_its_arguments_and_takes_them_per_call() -> None:
    module = focal_ext.SigmoidFocalLoss(
        torch.tensor([0.1, 0.2, 0.3]), reduction="sum", normalizer=torch.tensor(2.0), weight=torch.ones(3)
    )
    assert {name for name, _ in module.named_buffers()} == {"alpha", "normalizer", "weight"}
    logits: Tensor = torch.randn(4, 3)
    # two divisions, half a ULP each
    torch.testing.assert_close(module(logits, IDS), 2 * module(logits, IDS, normalizer=4.0), rtol=1e-6, atol=0)
    learned = focal_ext.SigmoidFocalLoss(torch.nn.Parameter(torch.full((3,), 0.25)), reduction="sum")
    learned(logits, IDS).backward()
    assert [p.grad is not None for p in learned.parameters()] == [True]
    for wrong in ({"alpha": 7.0}, {"gamma": -1.0}, {"reduction": "avg"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            focal_ext.SigmoidFocalLoss(**wrong)


def test_a_sequence_of_alphas_becomes_one_tensor_of_each_type_and_device_whatever_mode_made_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_factors, "_kept", {})
    x, values = torch.randn(4, 3), [0.25, 0.5, 0.75]
    with torch.inference_mode():
        first = _factors.check_class_alpha(values, x, 3, 1.0)
    assert _factors.check_class_alpha(np.array(values), x.bfloat16(), 3, 1.0) is first and not first.is_inference()
    assert _factors.check_class_alpha(values, x.double(), 3, 1.0).dtype == torch.float64
    with FakeTensorMode():  # leaves nothing of its own behind
        _factors.check_class_alpha([0.1, 0.2, 0.3], torch.randn(4, 3), 3, 1.0)
    assert all(type(kept) is Tensor for kept in _factors._kept.values()) and len(_factors._kept) == 2
    for i in range(200):
        _factors.check_class_alpha([i / 200] * 3, x, 3, 1.0)
    assert 0 < len(_factors._kept) <= 64


@pytest.mark.parametrize("alpha", [[0.1, 1.5, 0.2], (0.1, float("nan"), 0.2), np.array([-0.1, 0.0, 0.5])], ids=str)
def test_a_sequence_of_alphas_is_checked_on_a_device_too(alpha: object) -> None:
    with pytest.raises(ValueError, match=r"alpha: every value must be in \[0, 1\]"):
        _factors.check_class_alpha(alpha, torch.empty(4, 3, device="meta"), 3, 1.0)

# Owns: what softmax_focal_loss refuses, and in which words.
# Must not know: values.
from __future__ import annotations

import re

import pytest
import torch
from cases import IMPLEMENTATIONS, Implementation

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
X, Y = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, -100, 0])
BACKGROUND = (
    "is outside [0, 4); softmax has no background, make it a class of its own or use ignore_index=-100 to skip a row"
)

# Changed arguments, and how the message begins or goes on.
WRONG = {
    "id C": ({"targets": torch.tensor([0, 1, 4, 3, 0, 0])}, ValueError, f"targets: class id 4 at row 2 {BACKGROUND}"),
    "id -1": (
        {"targets": torch.tensor([0, 1, 2, 3, 0, -1])},
        ValueError,
        f"targets: class id -1 at row 5 {BACKGROUND}",
    ),
    "id -1, nothing ignored": (
        {"targets": Y - 1, "ignore_index": None},
        ValueError,
        "targets: class id -1 at row 0 is outside [0, 4); softmax has no background, make it a class of its own",
    ),
    "uint64 beyond int64": (
        {"targets": torch.tensor([0, 1, 2, 3, -1, 0]).to(torch.uint64)},
        ValueError,
        "targets: class id 18446744073709551615 at row 4",
    ),
    "float ids": (
        {"targets": Y.float()},
        TypeError,
        "targets: of shape inputs.shape[:-1] they are class ids and must be integers",
    ),
    "shape": (
        {"targets": torch.zeros(6, 5)},
        ValueError,
        "targets: shape must be (6,) for class ids or (6, 4) for dense targets, got (6, 5)",
    ),
    "smoothed dense": (
        {"targets": torch.rand(6, 4), "label_smoothing": 0.1},
        ValueError,
        "label_smoothing: needs class ids, got dense targets and 0.1",
    ),
    "smoothing": ({"label_smoothing": 1.5}, ValueError, "label_smoothing: must be in [0, 1], got 1.5"),
    "gamma": ({"gamma": -0.5}, ValueError, "gamma: must be finite and >= 0, got -0.5"),
    "alpha": ({"alpha": -2.0}, ValueError, "alpha: must be finite and >= 0, or None or -1 to switch it off, got -2.0"),
    "infinite alpha": ({"alpha": float("inf")}, ValueError, "alpha: must be finite and >= 0"),
    "alphas": ({"alpha": [0.5, 2.0, -1.0, 1.0]}, ValueError, "alpha: every value must be finite and >= 0"),
    "too few alphas": (
        {"alpha": [0.5, 2.0]},
        ValueError,
        "alpha: a tensor or sequence must hold one value per class, shape (4,), got (2,)",
    ),
    "column": (
        {"weight": torch.rand(6, 1)},
        ValueError,
        "weight: must broadcast to the rows of inputs, (6,), got (6, 1); a column is weight.squeeze(-1)",
    ),
    "classes": (
        {"weight": torch.rand(4)},
        ValueError,
        "weight: must broadcast to the rows of inputs, (6,), got (4,); a factor for each class is alpha",
    ),
    "weight": ({"weight": torch.rand(5)}, ValueError, "weight: must broadcast to the rows of inputs, (6,), got (5,)"),
    "no tensor": ({"weight": 2.0}, TypeError, "weight: must be a torch.Tensor or None, got float"),
    "complex weight": ({"weight": torch.rand(6) * 1j}, TypeError, "weight: must be real numbers"),
    "positives of dense": (
        {"targets": torch.rand(6, 4), "reduction": "sum", "normalizer": "positives"},
        ValueError,
        "normalizer: 'positives' counts class ids",
    ),
    "normalised mean": ({"normalizer": 3.0}, ValueError, "normalizer: goes with reduction='sum', got reduction='mean'"),
    "reduction": ({"reduction": "avg"}, ValueError, "reduction: must be 'none', 'mean' or 'sum', got 'avg'"),
    "integer logits": ({"inputs": X.long()}, TypeError, "inputs: must be float32"),
}


@implementations
@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_a_wrong_argument_is_named_with_the_rule_and_the_way_out(
    name: str, reduction: str, implementation: Implementation
) -> None:
    changed, kind, message = WRONG[name]
    arguments = {"inputs": X, "targets": Y, "reduction": reduction, **changed}
    if "normalised" in name and reduction == "none":
        message = message.replace("mean", "none")
    with pytest.raises(kind, match="^" + re.escape(message)):
        implementation.module.softmax_focal_loss(**arguments)


@implementations
def test_an_ignored_index_inside_the_classes_is_skipped_and_outside_is_no_error(implementation: Implementation) -> None:
    for ignored in (0, 3, -1, 4, 255):
        ids = torch.where(torch.arange(6) % 2 == 0, ignored, 1)
        loss = implementation.module.softmax_focal_loss(X, ids, ignore_index=ignored, reduction="none")
        assert not loss[::2].any() and loss[1::2].all()


@implementations
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("shape", [(0, 4), (3, 0, 4), (0, 0)], ids=str)
def test_no_rows_give_0(shape: tuple, reduction: str, implementation: Implementation) -> None:
    for targets in (torch.zeros(shape[:-1], dtype=torch.int64), torch.zeros(shape)):
        x = torch.zeros(shape, requires_grad=True)
        loss = implementation.module.softmax_focal_loss(x, targets, reduction=reduction)
        loss.sum().backward()
        assert loss.shape == (shape[:-1] if reduction == "none" else ()) and not loss.sum() and x.grad.shape == shape


@implementations
def test_rows_without_classes_are_0_where_nothing_is_asked_and_an_error_where_an_id_is(
    implementation: Implementation,
) -> None:
    x = torch.zeros(3, 0)
    assert implementation.module.softmax_focal_loss(x, torch.zeros(3, 0), reduction="none").tolist() == [0, 0, 0]
    assert implementation.module.softmax_focal_loss(x, torch.full((3,), -100), reduction="none").tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match=r"targets: class id 0 at row 0 is outside \[0, 0\)"):
        implementation.module.softmax_focal_loss(x, torch.zeros(3, dtype=torch.int64))


@implementations
def test_all_rows_ignored_give_0(implementation: Implementation) -> None:
    x = torch.full((5, 4), float("nan"), requires_grad=True)
    loss = implementation.module.softmax_focal_loss(x, torch.full((5,), -100))
    loss.backward()
    assert loss == 0 and not x.grad.any()

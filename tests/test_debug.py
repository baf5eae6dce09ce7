# Owns: focal_ext.debug(): bad targets raise in compiled graphs and on other devices, where they are NaN otherwise.
# Must not know: what a bad target is of each loss (test_class_ids.py, test_ignored_dense.py).
from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import focal_ext
import pytest
import torch
from torch import Tensor

LOGITS, WRONG = torch.randn(6, 5), torch.tensor([0, -1, 4, 5, 7, -2])
PLANES, CONVOLUTION = [LOGITS.t().reshape(1, 5, 2, 3)], torch.randn(5, 5, 1, 1)
CALLS: dict[str, tuple[Callable[..., Tensor], Tensor, str]] = {
    "ids": (partial(focal_ext.sigmoid_focal_loss, LOGITS), WRONG, "class id 7 at anchor 4"),
    "softmax": (partial(focal_ext.softmax_focal_loss, LOGITS), WRONG.clamp(0), "class id 5 at row 3"),
    "dense integers": (partial(focal_ext.asymmetric_loss, LOGITS), torch.full((6, 5), 3), "3"),
    "pyramid": (
        lambda ids, reduction: focal_ext.pyramid.sigmoid_focal_loss(PLANES, ids[None], 5, reduction=reduction),
        WRONG,
        "class id 7 at anchor 4",
    ),
    "fused head": (
        lambda ids, reduction: focal_ext.conv_sigmoid_focal_loss(PLANES, CONVOLUTION, None, ids[None], 5, padding=0),
        WRONG,
        "class id 7 at anchor 4",
    ),
}
ROWS = pytest.mark.parametrize("call", CALLS)


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    focal_ext.debug(False)
    torch._dynamo.reset()


def compiled(call: str) -> Callable[[Tensor], Tensor]:
    function = CALLS[call][0]
    return torch.compile(lambda targets: function(targets, reduction="sum"), backend="aot_eager", fullgraph=True)


@ROWS
def test_a_compiled_graph_names_the_first_bad_target_while_it_is_on(call: str) -> None:
    _, bad, says = CALLS[call]
    step = compiled(call)
    assert step(bad).isnan()
    with focal_ext.debug(), pytest.raises(ValueError, match=f"targets: .*{says}"):
        step(bad)
    assert step(bad).isnan()


@ROWS
def test_good_targets_have_the_same_loss(call: str) -> None:
    good = CALLS[call][1].clamp(0, 1)
    step = compiled(call)
    want = step(good)
    with focal_ext.debug():
        assert torch.equal(step(good), want)


def test_gradients_pass_it() -> None:
    leaf, ids = LOGITS.clone().requires_grad_(), WRONG.clamp(-1, 5)
    loss = torch.compile(
        lambda x: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum"), backend="aot_eager", fullgraph=True
    )
    want = torch.autograd.grad(loss(leaf), leaf)
    with focal_ext.debug():
        assert torch.equal(torch.autograd.grad(loss(leaf), leaf)[0], want[0])


def test_a_device_whose_values_are_not_read_for_free_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on CUDA: nothing there looks at a value otherwise."""
    monkeypatch.setattr(focal_ext._arguments, "values_are_readable", lambda *tensors: False)
    call = partial(focal_ext.reference.sigmoid_focal_loss, LOGITS, WRONG, reduction="sum")
    assert call().isnan()
    with focal_ext.debug(), pytest.raises(ValueError, match="class id 7 at anchor 4"):
        call()


def test_it_can_be_switched_like_the_switches_of_torch() -> None:
    focal_ext.debug()
    with focal_ext.debug(False):
        assert compiled("ids")(WRONG).isnan()
    with pytest.raises(ValueError, match="class id 7"):
        compiled("ids")(WRONG)
    with pytest.raises(TypeError, match="mode: must be a bool, got int"):
        focal_ext.debug(1)  # type: ignore[arg-type]

# Owns: derivatives to second order, and what autograd does with the graph: kept, shared, hooked, changed in place,
# without gradient.
# Must not know: values (test_values.py), transforms (test_transforms.py), overwrite_inputs (test_overwrite.py).
from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import IMPLEMENTATIONS, PUBLIC, Implementation
from family import EVERYDAY, MEMBERS, SCORED, Member, every_loss, every_member, scores_of
from oracle import hard
from pairwise import rows_of_every_pair, taking_turns
from rounding import rounded
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
loss_of = PUBLIC.module.sigmoid_focal_loss

REDUCTIONS = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "mean": {"reduction": "mean"},
    "positives": {"reduction": "sum", "normalizer": "positives"},
    "float": {"reduction": "sum", "normalizer": 3.0},
}
TARGETS = {
    "ids": torch.tensor([[0, -1, 3], [-2, 2, 1]]),
    "ids without positives": torch.full((2, 3), 3),
    "ids all ignored": torch.full((2, 3), -2),
    "dense soft": torch.linspace(0.05, 0.95, 18, dtype=torch.float64).view(2, 3, 3),
    "dense hard": torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64).expand(2, 3, 3),
    "dense bool": torch.tensor([True, False, False]).expand(2, 3, 3),
    "dense uint8": torch.tensor([0, 1, 0], dtype=torch.uint8).expand(2, 3, 3),
}
every_call = [(r, t) for r in REDUCTIONS for t in TARGETS if not (r == "positives" and t.startswith("dense"))]


def logits(requires_grad: bool = True) -> Tensor:
    return (torch.linspace(-3, 3, 18, dtype=torch.float64).view(2, 3, 3) + 0.1).requires_grad_(requires_grad)


SIGMOID = {
    f"sigmoid focal {gamma}": Member("sigmoid_focal_loss", {"alpha": 0.3, "gamma": gamma}) for gamma in (0.0, 0.5, 1.7)
}


DIFFERENCES = {name: member for name, member in MEMBERS.items() if not member.has_constant}
# All losses share what reductions and targets do to derivatives.
DIFFERENTIATED = rows_of_every_pair(
    {"reduction": tuple(REDUCTIONS), "targets": tuple(TARGETS), "member": (*SIGMOID, *DIFFERENCES)},
    lambda row: (row["reduction"], row["targets"]) in every_call,
)


@implementations
@pytest.mark.parametrize("reduction, targets, member", [tuple(row.values()) for row in DIFFERENTIATED])
def test_first_and_second_derivatives_are_those_of_finite_differences(
    reduction: str, targets: str, member: str, implementation: Implementation
) -> None:
    loss_of = {**SIGMOID, **MEMBERS}[member].on(implementation)

    def call(x: Tensor, w: Tensor) -> Tensor:
        return loss_of(x, TARGETS[targets], weight=w, **REDUCTIONS[reduction])

    weight = torch.linspace(0.5, 2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(call, (logits(), weight))
    assert torch.autograd.gradcheck(call, (logits(), weight.requires_grad_()))
    if loss_of.is_smooth:
        assert torch.autograd.gradgradcheck(call, (logits(), weight.detach()))


@implementations
@pytest.mark.parametrize("loss_of", DIFFERENCES.values(), ids=DIFFERENCES)
@pytest.mark.parametrize("reduction", ["none", "sum", "tensor"])
def test_targets_scores_weight_and_normalizer_get_their_gradients(
    loss_of: Member, reduction: str, implementation: Implementation
) -> None:
    t, w, n = TARGETS["dense soft"].clone(), torch.rand(3, 1).double() + 0.5, torch.tensor(4.0).double()

    def call(x: Tensor, t: Tensor, w: Tensor, n: Tensor) -> Tensor:
        options = {"reduction": "sum", "normalizer": n} if reduction == "tensor" else {"reduction": reduction}
        targets = (TARGETS["ids"], t) if t.dim() < x.dim() else t
        return loss_of.on(implementation)(x, targets, weight=w, **options)

    for chosen in (t, scores_of(TARGETS["ids"])) if loss_of.loss in SCORED else (t,):
        used = (w, n) if reduction == "tensor" else (w, n.detach())
        leaves = [logits(), *(v.detach().clone().requires_grad_() for v in (chosen, *used))]
        if reduction != "tensor":
            leaves[-1] = n
        assert torch.autograd.gradcheck(call, leaves, atol=1e-6)
        if loss_of.is_smooth and reduction != "sum":
            assert torch.autograd.gradgradcheck(call, leaves, atol=1e-5)
        # of logits that require none
        assert torch.autograd.gradcheck(lambda t: call(logits(False), t, w, n), leaves[1])


@implementations
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean", "tensor"])
def test_targets_weight_alpha_and_normalizer_get_their_gradients(
    reduction: str, gamma: float, implementation: Implementation
) -> None:
    def call(x: Tensor, t: Tensor, w: Tensor, a: Tensor, n: Tensor) -> Tensor:
        options = {"reduction": "sum", "normalizer": n} if reduction == "tensor" else {"reduction": reduction}
        return implementation.module.sigmoid_focal_loss(x, t, a, gamma, weight=w, **options)

    tensors = (
        logits(),
        TARGETS["dense soft"].clone(),
        torch.rand(3, 1).double() + 0.5,
        torch.tensor([0.2, 0.5, 0.9]).double(),
        torch.tensor(4.0).double(),
    )
    assert torch.autograd.gradcheck(call, [t.detach().requires_grad_() for t in tensors], atol=1e-6)
    alone = tensors[3].detach().requires_grad_()  # the gradient of alpha with class ids, of logits that require none
    ids = TARGETS["ids"]
    assert torch.autograd.gradcheck(
        lambda a: implementation.module.sigmoid_focal_loss(logits(False), ids, a, gamma), alone
    )


@taking_turns(
    {"dtype": (torch.float64, torch.float32, torch.bfloat16, torch.float16)}, call=every_call, member=EVERYDAY
)
def test_a_kept_graph_gives_the_same_gradient_every_time_and_losses_share_logits(
    call: tuple[str, str], member: str, dtype: torch.dtype
) -> None:
    (reduction, targets), loss_of = call, EVERYDAY[member]
    x = logits(False).to(dtype).requires_grad_()
    loss = loss_of(x, TARGETS[targets], **REDUCTIONS[reduction]).sum()
    once = [
        torch.autograd.grad(loss, x, torch.tensor(g, dtype=loss.dtype), retain_graph=True)[0] for g in (1.0, 1.0, 4.0)
    ]
    (last,) = torch.autograd.grad(loss, x, torch.tensor(4.0, dtype=loss.dtype))
    assert torch.equal(once[0], once[1]) and torch.equal(once[2], last)
    # there the rounding of small gradients comes after the factor
    assert torch.equal(once[0] * 4, last) or dtype is torch.float16
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, x)

    base = x.detach().clone().requires_grad_()
    other, inner = MEMBERS["sigmoid focal"], base * 1
    both = (
        loss_of(inner, TARGETS[targets], **REDUCTIONS[reduction]).sum()
        + 2 * other(inner, TARGETS[targets], gamma=0.0, **REDUCTIONS[reduction]).sum()
    )
    both.backward()
    (second,) = torch.autograd.grad(2 * other(x, TARGETS[targets], gamma=0.0, **REDUCTIONS[reduction]).sum(), x)
    assert torch.allclose(
        base.grad.double(), (once[0].double() + second.double()), rtol=4 * torch.finfo(dtype).eps, atol=1e-6
    )


@pytest.mark.native
@pytest.mark.parametrize("changed", ["inputs", "targets", "weight", "alpha", "normalizer", "scores"])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_tensor_changed_in_place_before_backward_is_an_error_not_a_wrong_gradient(
    reduction: str, changed: str
) -> None:
    if (reduction, changed) == ("none", "normalizer"):
        return  # there is none
    inner = logits() * 1
    used = {
        "inputs": inner,
        "targets": TARGETS["dense soft"].clone(),
        "weight": torch.ones(2, 3, 3).double(),
        "alpha": torch.rand(3).double(),
        "normalizer": torch.tensor(2.0).double(),
    }
    options = {"normalizer": used["normalizer"]} if reduction == "sum" else {}
    if changed == "scores":
        used["scores"] = scores_of(TARGETS["ids"])
        loss = MEMBERS["varifocal"](inner, (TARGETS["ids"], used["scores"]), reduction=reduction, **options)
    else:
        loss = loss_of(inner, used["targets"], used["alpha"], 2.0, reduction, weight=used["weight"], **options)
    with torch.no_grad():
        used[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


class Ops(TorchDispatchMode):
    """Records the names of the ops that run, and the bytes of all tensors they return."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(str(func).split(".default")[0])
        for tensor in result if isinstance(result, tuple) else (result,):
            self.largest = max(self.largest, tensor.numel() if isinstance(tensor, Tensor) else 0)
        return result


@pytest.mark.native
@pytest.mark.parametrize("grad", ["no_grad", "detached", "inference_mode"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_no_gradient_is_computed_where_none_is_required(reduction: str, grad: str) -> None:
    x, ids = torch.randn(64, 5, requires_grad=grad != "detached"), torch.randint(-2, 6, (64,))
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode, "detached": torch.enable_grad}[grad]
    with Ops() as ops, context():
        loss = loss_of(x, ids, reduction=reduction)
    assert not loss.requires_grad and [n for n in ops.names if "focal" in n] == ["focal_ext.loss"]
    assert ops.largest == 1  # nothing of the logits' size


@pytest.mark.native
@every_member
def test_loss_and_gradient_are_one_pass_and_backward_hands_the_gradient_over(loss_of: Member) -> None:
    x, ids = torch.randn(64, 5, requires_grad=True), torch.randint(-2, 6, (64,))
    for factor, wanted in ((1.0, []), (3.0, ["focal_ext.scale_"])):
        with Ops() as ops:
            loss = loss_of(x, ids, reduction="sum")
            assert [n for n in ops.names if "focal" in n] == ["focal_ext.loss_and_gradient"]
            ops.names.clear()
            loss.backward(torch.tensor(factor))
        assert [n for n in ops.names if "focal" in n] == wanted
        assert not {"aten.clone", "aten.copy_", "aten.mul"} & set(ops.names)
        x.grad = None


@pytest.mark.native
def test_the_gradient_of_an_unreduced_sum_needs_no_map_of_ones() -> None:
    x, ids = torch.randn(64, 5, requires_grad=True), torch.randint(-2, 6, (64,))
    loss = loss_of(x, ids).sum()
    with Ops() as ops:
        loss.backward()
    assert [n for n in ops.names if "focal" in n] == ["focal_ext.gradient"] and "aten.clone" not in ops.names


@every_loss
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_saved_tensor_hooks_and_checkpoint_see_all_that_backward_uses(reduction: str, loss_of: Member) -> None:
    x, ids = torch.randn(64, 5, requires_grad=True), torch.randint(-2, 6, (64,))
    (want,) = torch.autograd.grad(loss_of(x, ids, reduction=reduction).sum(), x)
    packed: list[Tensor] = []

    def pack(tensor: Tensor) -> int:
        packed.append(tensor.detach().clone())
        return len(packed) - 1

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda i: packed[i].clone()):
        loss = loss_of(x, ids, reduction=reduction).sum()
    grads = [torch.autograd.grad(loss, x, retain_graph=keep)[0] for keep in (True, True, False)]
    assert all(torch.equal(grad, want) for grad in grads)
    assert PUBLIC.name == "reference" or any(tensor.shape == x.shape and tensor.dtype == x.dtype for tensor in packed)
    for reentrant in (True, False):
        recomputed = checkpoint(lambda x: loss_of(x * 1, ids, reduction=reduction).sum(), x, use_reentrant=reentrant)
        assert torch.equal(
            torch.autograd.grad(recomputed, x)[0] if not reentrant else (recomputed.backward(), x.grad)[1], want
        )


@pytest.mark.parametrize(
    "loss_of, factor",
    [(MEMBERS["sigmoid focal"], 0.75), (MEMBERS["quality focal"], 1.0), (MEMBERS["varifocal"], 0.75)],
    ids=["sigmoid", "quality", "varifocal"],
)
def test_float16_gradients_are_rounded_once_after_the_grad_scaler_has_multiplied_them(
    loss_of: Member, factor: float
) -> None:
    x = (torch.randn(200_000, 1) * 1.5 - 6).half()
    exact = factor * hard(x.double(), 2.0).gradient
    unscaled = (rounded(exact, torch.float16) == 0).double().mean()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for reduction in ("sum", "none"):
        leaf = x.clone().requires_grad_()
        scaler.scale(loss_of(leaf, torch.full((len(x),), -1), reduction=reduction).sum().float()).backward()
        zeros = (leaf.grad == 0).double().mean()
        assert zeros == pytest.approx(float((rounded(exact * 2.0**10, torch.float16) == 0).double().mean()), abs=1e-4)
        assert unscaled > 0.4 and zeros < 0.1


@every_loss
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_changes_no_result_and_no_dtype(reduction: str, loss_of: Member) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x, ids = torch.randn(16, 4).to(dtype), torch.randint(-2, 5, (16,))
        outside = loss_of(x, ids, **REDUCTIONS[reduction])
        with torch.autocast("cpu", torch.bfloat16):
            inside = loss_of(x, ids, **REDUCTIONS[reduction])
        assert inside.dtype == outside.dtype and torch.equal(inside, outside)

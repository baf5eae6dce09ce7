# Owns: overwrite_inputs=True: the gradient replaces the logits, and every way in which that could go unnoticed is an
# error.
# Must not know: values (test_values.py).
from __future__ import annotations

import pytest
import torch
from cases import IMPLEMENTATIONS, LAYOUTS, PUBLIC, Implementation
from family import EVERYDAY, Member, every_loss
from pairwise import pairwise
from torch import Tensor
from torch.utils.checkpoint import checkpoint

loss_of = PUBLIC.module.sigmoid_focal_loss
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
IDS = torch.randint(-2, 6, (3, 40), generator=torch.Generator().manual_seed(0))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def layer(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[Tensor, Tensor]:
    """A leaf and logits computed from it, in some layout."""
    leaf = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    return leaf, LAYOUTS[layout](leaf * 1)


@pytest.mark.native
@pairwise(
    member=EVERYDAY,
    reduction=("none", "sum", "mean"),
    layout=[name for name in LAYOUTS if "expanded" not in name],
    dtype=DTYPES,
)
def test_the_gradient_is_written_over_the_logits(member: str, reduction: str, layout: str, dtype: torch.dtype) -> None:
    loss_of = EVERYDAY[member]
    leaf, inner = layer(dtype, layout)
    values = inner.detach().clone()
    want = torch.autograd.grad(loss_of(inner, IDS, reduction=reduction).sum(), leaf)[0]
    leaf, inner = layer(dtype, layout)
    version, memory = inner._version, inner.data_ptr()
    loss = loss_of(inner, IDS, reduction=reduction, overwrite_inputs=True)
    at_once = reduction != "none" and dtype != torch.float16  # else in backward, until which they are readable
    assert torch.equal(inner, values) != at_once and inner._version == version + at_once
    assert torch.equal(loss, loss_of(values, IDS, reduction=reduction))
    seen = inner._base is None or not at_once  # a view that was written is a new tensor to autograd
    got, *gradient = torch.autograd.grad(loss.sum(), (leaf, inner) if seen else (leaf,))
    assert torch.equal(got, want)
    assert inner.data_ptr() == memory and inner._version == version + 1 and not torch.equal(inner, values)
    assert all(torch.equal(inner.detach(), g) and g.data_ptr() == memory for g in gradient)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grad_output_multiplies_the_overwritten_gradient_too(dtype: torch.dtype) -> None:
    grads = []
    for overwrite in (False, True):
        leaf, inner = layer(dtype)
        loss = loss_of(inner, IDS, reduction="sum", normalizer="positives", overwrite_inputs=overwrite)
        grads.append(torch.autograd.grad(4 * loss, leaf)[0].double())
    assert torch.equal(*grads)
    leaf, inner = layer(dtype)
    upstream = torch.rand(3, 40, 5).to(dtype)
    (mapped,) = torch.autograd.grad(loss_of(inner, IDS, overwrite_inputs=True), leaf, upstream)
    leaf, inner = layer(dtype)
    assert torch.equal(mapped, torch.autograd.grad(loss_of(inner, IDS), leaf, upstream)[0])


@pytest.mark.native
def test_whoever_else_saved_the_logits_gets_autograds_own_error() -> None:
    leaf, inner = layer()
    saved = inner.square().sum()
    loss_of(inner, IDS, reduction="sum", overwrite_inputs=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    inner = torch.randn(40, 3, requires_grad=True).exp()  # exp saves its result, which is the logits
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss_of(inner, IDS[0].clamp(max=3), reduction="sum", overwrite_inputs=True).backward()


@pytest.mark.native
@pytest.mark.parametrize(
    "second, sentence",
    [(0, "replaced by the first backward.*needs overwrite_inputs=False"), (1, "modified by an inplace operation")],
)
def test_a_second_backward_of_an_unreduced_loss_raises_whether_of_the_same_or_of_another(
    second: int, sentence: str
) -> None:
    leaf, inner = layer()
    losses = [loss_of(inner, IDS, overwrite_inputs=True).sum() for _ in range(2)]
    losses[0].backward(retain_graph=True)
    with pytest.raises(RuntimeError, match=sentence):
        losses[second].backward()


@pytest.mark.native
def test_a_kept_graph_gives_the_gradient_of_a_reduced_loss_again() -> None:
    leaf, inner = layer()
    want = torch.autograd.grad(loss_of(inner, IDS, reduction="sum"), leaf)[0]
    leaf, inner = layer()
    loss = loss_of(inner, IDS, reduction="sum", overwrite_inputs=True)
    first = torch.autograd.grad(3 * loss, leaf, retain_graph=True)[0].clone()
    assert torch.equal(first, 3 * want) and torch.equal(torch.autograd.grad(loss, leaf)[0], want)


@pytest.mark.native
@pytest.mark.parametrize("class_dim", [-1, 1])
@pytest.mark.parametrize("overwrite", [False, True])
def test_no_later_call_takes_a_gradient_for_logits(overwrite: bool, class_dim: int) -> None:
    _, inner = layer()
    ids = IDS if class_dim == -1 else IDS[:, :5]
    ids = ids.clamp(max=4)
    loss_of(inner, ids, reduction="sum", class_dim=class_dim, overwrite_inputs=True)
    with pytest.raises(RuntimeError, match="hold their gradient since an earlier call.*overwrite_inputs=False"):
        loss_of(inner, ids, reduction="sum", class_dim=class_dim, overwrite_inputs=overwrite)
    inner.detach().normal_()  # what was written anew is read
    assert loss_of(inner, ids, reduction="sum", class_dim=class_dim).isfinite()


@pytest.mark.native
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_second_derivative_is_refused(reduction: str) -> None:
    leaf, inner = layer()
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(
            loss_of(inner, IDS, reduction=reduction, overwrite_inputs=True).sum(), leaf, create_graph=True
        )


@implementations
@pytest.mark.parametrize("case", ["leaf", "expanded", "overlapping", "inference"])
def test_logits_that_must_not_be_written_are_a_value_error(case: str, implementation: Implementation) -> None:
    with torch.inference_mode():
        inference = torch.randn(40, 5)
    grown = torch.randn(44, requires_grad=True) * 1
    row = torch.randn(1, 5, requires_grad=True) * 1
    inputs, rule = {
        "leaf": (torch.randn(40, 5, requires_grad=True), "leaf that requires grad"),
        "expanded": (row.expand(40, 5), "share memory"),
        "overlapping": (grown.as_strided((40, 5), (1, 1)), "share memory"),
        "inference": (inference, "inference tensor"),
    }[case]
    with pytest.raises(ValueError, match=f"overwrite_inputs: .*{rule}"):
        implementation.module.sigmoid_focal_loss(inputs, IDS[0], reduction="sum", overwrite_inputs=True)


@implementations
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_without_a_gradient_nothing_is_overwritten(reduction: str, implementation: Implementation) -> None:
    leaf, inner = layer()
    before = inner.detach().clone()
    with torch.no_grad():
        implementation.module.sigmoid_focal_loss(inner, IDS, reduction=reduction, overwrite_inputs=True)
    plain = before.clone()
    assert not implementation.module.sigmoid_focal_loss(
        plain, IDS, reduction=reduction, overwrite_inputs=True
    ).requires_grad
    assert torch.equal(inner, before) and torch.equal(plain, before)


@implementations
def test_where_the_reference_computes_it_is_ignored_and_the_gradient_right(implementation: Implementation) -> None:
    weight = torch.rand(5, requires_grad=True)
    grads = []
    for overwrite in (False, True):
        leaf, inner = layer()
        loss = implementation.module.sigmoid_focal_loss(
            inner, IDS, reduction="sum", weight=weight, overwrite_inputs=overwrite
        )
        grads.append(torch.autograd.grad(loss, (leaf, weight)))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])
    x = torch.randn(40, 5)
    total = lambda x, overwrite: implementation.module.sigmoid_focal_loss(  # noqa: E731
        x * 1, IDS[0], reduction="sum", overwrite_inputs=overwrite
    )
    assert torch.equal(torch.func.grad(total)(x, True), torch.func.grad(total)(x, False))
    direct = torch.func.grad(
        lambda x: implementation.module.sigmoid_focal_loss(x, IDS[0], reduction="sum", overwrite_inputs=True)
    )
    # a leaf of the transform, which is none of the caller's
    assert torch.equal(direct(x), torch.func.grad(total)(x, False))


@pytest.mark.native
def test_a_part_of_a_larger_tensor_is_overwritten_alone() -> None:
    leaf = torch.randn(40, 8, requires_grad=True)
    whole = leaf * 1
    rest = whole.detach()[:, 5:].clone()
    loss_of(whole[:, :5], IDS[0], reduction="sum", overwrite_inputs=True).backward()
    assert torch.equal(whole.detach()[:, 5:], rest) and not leaf.grad[:, 5:].any()
    x = leaf.detach()[:, :5].clone().requires_grad_()
    loss_of(x, IDS[0], reduction="sum").backward()
    assert torch.equal(leaf.grad[:, :5], x.grad) and torch.equal(whole.detach()[:, :5], x.grad)


@pytest.mark.native
@every_loss
def test_two_heads_of_one_layer_are_overwritten_each_with_its_own_gradient(loss_of: Member) -> None:
    grads = []
    for overwrite in (False, True):
        leaf = torch.randn(40, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
        trunk = leaf * 1
        heads = [trunk[:, :5] * 2, trunk[:, 3:] * 3]  # they share three columns of the layer below
        values = [head.detach().clone() for head in heads]
        loss = sum(loss_of(head, IDS[n], reduction="sum", overwrite_inputs=overwrite) for n, head in enumerate(heads))
        loss.backward()
        grads.append(leaf.grad)
        assert overwrite == (not any(torch.equal(head, value) for head, value in zip(heads, values)))
    assert torch.equal(*grads)


@pytest.mark.native
def test_hooks_on_the_logits_see_the_gradient_and_may_replace_it() -> None:
    grads, seen = [], []
    for overwrite in (False, True):
        leaf, inner = layer()
        inner.retain_grad()
        inner.register_hook(lambda gradient: seen.append(gradient.clone()) or gradient * 3)
        leaf.register_post_accumulate_grad_hook(lambda leaf: seen.append(leaf.grad.clone()))
        loss_of(inner, IDS, reduction="sum", overwrite_inputs=overwrite).backward()
        grads.append((leaf.grad, inner.grad))
    assert torch.equal(grads[0][0], grads[1][0]) and torch.equal(grads[0][1], grads[1][1])
    assert (
        len(seen) == 4
        and torch.equal(seen[0], seen[2])
        and torch.equal(seen[1], 3 * seen[0])
        and torch.equal(seen[1], seen[3])
    )


@pytest.mark.native
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_checkpoint_recomputes_logits_and_overwrites_those(reduction: str, reentrant: bool) -> None:
    grads = []
    for overwrite in (False, True):
        leaf, _ = layer()
        loss = checkpoint(
            lambda x, o=overwrite: loss_of(x * 1, IDS, reduction=reduction, overwrite_inputs=o).sum(),
            leaf,
            use_reentrant=reentrant,
        )
        loss.backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)


@pytest.mark.native
def test_offloaded_logits_are_overwritten_where_they_were_brought_back() -> None:
    leaf, inner = layer()
    want = torch.autograd.grad(loss_of(inner, IDS, reduction="sum"), leaf)[0]
    leaf, inner = layer()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t.clone()):
        loss = loss_of(inner, IDS, reduction="sum", overwrite_inputs=True)
    loss.backward()
    assert torch.equal(leaf.grad, want)

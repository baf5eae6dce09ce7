# Owns: the pyramid op under autograd: kept graphs, second derivatives, overwriting, transforms, compiled graphs, the
# ops' contracts.
# Must not know: values (test_pyramid.py).
from __future__ import annotations

from typing import Any

import focal_ext
import pytest
import torch
from focal_ext._call import Call
from focal_ext._levels import Levels
from pairwise import every_value_once
from pyramids import DTYPES, LAYOUTS, SHAPES, Shape, labels, leaves, maps, rows
from test_autograd import Ops
from torch import Tensor

loss_of = focal_ext.pyramid.sigmoid_focal_loss
SHAPE = SHAPES["everyday"]
TINY = Shape(images=2, anchors=2, classes=2, sizes=((2, 3), (1, 2)))
IDS = labels(SHAPE)
OPTIONS: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"reduction": "mean"},
    "positives": {"normalizer": "positives"},
    "weighted": {
        "weight": torch.tensor([[0.5], [2.0]], dtype=torch.float64),
        "gamma": 1.5,
        "alpha": [0.1, 0.6],
        "label_smoothing": 0.1,
    },
}


def computed(dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> tuple[list[Tensor], list[Tensor]]:
    """Leaves, and levels that a layer computed from them."""
    inputs = leaves(maps(SHAPE, layout, dtype))
    return inputs, [x * 1 for x in inputs]


def plain(
    levels: list[Tensor],
    ids: Tensor,
    classes: int,
    reduction: str = "sum",
    weight: Tensor | None = None,
    **options: Any,
) -> Tensor:
    """permute + cat + the reference over rows."""
    weight = weight if weight is None else weight[..., None]
    return focal_ext.reference.sigmoid_focal_loss(
        rows(levels, classes), ids, reduction=reduction, weight=weight, **options
    )


def same(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> bool:
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_kept_graph_gives_the_same_gradients_every_time(dtype: torch.dtype) -> None:
    inputs = leaves(maps(SHAPE, "mixed", dtype))
    loss = loss_of(inputs, IDS, SHAPE.classes, normalizer="positives")
    first = torch.autograd.grad(4 * loss, inputs, retain_graph=True)
    second = torch.autograd.grad(4 * loss, inputs, retain_graph=True)
    assert same(first, second)
    last = torch.autograd.grad(4 * loss, inputs)
    assert same(first, last) and all(gradient.any() for gradient in last)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize("name", OPTIONS)
def test_first_and_second_derivatives_are_those_of_finite_differences(name: str) -> None:
    levels = [level / 4 for level in leaves(maps(TINY, "mixed", torch.float64))]
    levels, ids = leaves(levels), labels(TINY, often=0.25)
    call = lambda *x: loss_of(list(x), ids, TINY.classes, **OPTIONS[name])  # noqa: E731
    assert torch.autograd.gradcheck(call, levels) and torch.autograd.gradgradcheck(call, levels)
    batched = torch.autograd.grad(call(*levels), levels, torch.tensor([1.0, 3.0]).double(), is_grads_batched=True)
    assert all(torch.allclose(both[1], 3 * both[0], rtol=1e-14) for both in batched)


def test_weight_alpha_and_normalizer_get_their_gradients() -> None:
    levels, ids = leaves(maps(TINY, dtype=torch.float64)), labels(TINY, often=0.25)
    weight, alpha, normalizer = (
        t.double().requires_grad_() for t in (torch.tensor([[0.5], [2.0]]), torch.tensor([0.3, 0.6]), torch.tensor(4.0))
    )
    call = lambda w, a, n, *x: loss_of(list(x), ids, TINY.classes, a, weight=w, normalizer=n)  # noqa: E731
    assert torch.autograd.gradcheck(call, (weight, alpha, normalizer, *levels))


def test_levels_that_want_no_gradient_get_none() -> None:
    inputs = leaves(maps(SHAPE))
    want = torch.autograd.grad(loss_of(inputs, IDS, SHAPE.classes), inputs)
    inputs[1].requires_grad_(False)
    got = torch.autograd.grad(loss_of(inputs, IDS, SHAPE.classes), [inputs[0], inputs[2]])
    assert same(got, (want[0], want[2])) and inputs[1].grad is None


@pytest.mark.native
def test_one_pass_without_a_copy_and_the_gradients_are_handed_over() -> None:
    inputs = leaves(maps(SHAPE, "mixed"))
    with Ops() as ops:
        loss_of(inputs, IDS, SHAPE.classes, normalizer="positives").backward()
    assert [n for n in ops.names if "focal" in n] == ["focal_ext.pyramid_loss_and_gradient"]
    assert not {"aten.clone", "aten.copy_", "aten.mul", "aten.mul_", "aten.cat"} & set(ops.names)
    with Ops() as ops, torch.no_grad():
        loss_of(inputs, IDS, SHAPE.classes, normalizer="positives")
    # nothing of the logits' size
    assert [n for n in ops.names if "focal" in n] == ["focal_ext.pyramid_loss"] and ops.largest <= IDS.numel()


@pytest.mark.native
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "mixed"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 4.0])
def test_the_gradients_are_written_over_the_levels(factor: float, dtype: torch.dtype, layout: str) -> None:
    inputs, levels = computed(dtype, layout)
    want = torch.autograd.grad(factor * loss_of(levels, IDS, SHAPE.classes, normalizer="positives"), inputs)
    inputs, levels = computed(dtype, layout)
    values, versions = [level.detach().clone() for level in levels], [level._version for level in levels]
    loss = factor * loss_of(levels, IDS, SHAPE.classes, normalizer="positives", overwrite_inputs=True)
    assert same(tuple(values), tuple(levels)) == (dtype == torch.float16)  # which is readable until backward
    results = torch.autograd.grad(loss, [*inputs, *levels])
    got, handed = results[:3], results[3:]
    # subnormal gradients are stored before the factor
    near = 2 * torch.finfo(dtype).smallest_normal if factor != 1 and dtype != torch.float16 else 0
    assert all(torch.allclose(a, b, rtol=0, atol=near) for a, b in zip(got, want)) and [
        g.data_ptr() for g in handed
    ] == [level.data_ptr() for level in levels]
    assert all(level._version > version for level, version in zip(levels, versions))


@pytest.mark.native
def test_whoever_needs_the_overwritten_levels_again_gets_an_error() -> None:
    _, levels = computed()
    loss = loss_of(levels, IDS, SHAPE.classes, overwrite_inputs=True)
    with pytest.raises(RuntimeError, match="hold their gradient since an earlier call"):
        loss_of(levels, IDS, SHAPE.classes)
    _, levels = computed(torch.float16)
    loss = loss_of(levels, IDS, SHAPE.classes, overwrite_inputs=True)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="replaced by the first backward.*needs overwrite_inputs=False"):
        loss.backward()
    _, levels = computed()
    saved = levels[1].square().sum()
    loss_of(levels, IDS, SHAPE.classes, overwrite_inputs=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.backward()
    inputs, levels = computed()
    with pytest.raises(RuntimeError, match="once differentiable"):
        torch.autograd.grad(loss_of(levels, IDS, SHAPE.classes, overwrite_inputs=True), inputs, create_graph=True)


@pytest.mark.parametrize(
    "change, rule",
    [
        (
            lambda levels: [levels[0].detach().requires_grad_(), *levels[1:]],
            r"levels\[0\] is a leaf that requires grad",
        ),
        (lambda levels: [*levels[:2], levels[2][:1].expand(levels[2].shape)], r"levels\[2\] share memory"),
        (lambda levels: [levels[0], levels[0]], "two of levels share memory; clone"),
    ],
    ids=["leaf", "expanded", "the same level twice"],
)
def test_levels_that_must_not_be_written_are_a_value_error(change: Any, rule: str) -> None:
    levels = change(computed()[1])
    ids = torch.full((SHAPE.images, sum(level[0, ::5].numel() for level in levels)), -1)
    with pytest.raises(ValueError, match=f"overwrite_inputs: .*{rule}"):
        loss_of(levels, ids, SHAPE.classes, overwrite_inputs=True)


def test_saved_tensor_hooks_see_what_backward_uses() -> None:
    inputs, levels = computed()
    want = torch.autograd.grad(loss_of(levels, IDS, SHAPE.classes), inputs)
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: (kept.append(t.detach().clone()), len(kept) - 1)[1], lambda i: kept[i].clone()
    ):
        loss = loss_of(inputs, IDS, SHAPE.classes)
    assert same(torch.autograd.grad(loss, inputs), want)


@pytest.mark.native
def test_a_level_changed_in_place_before_backward_is_an_error_not_a_wrong_gradient() -> None:
    for overwrite in (False, True):
        inputs, levels = computed()
        loss = loss_of(levels, IDS, SHAPE.classes, overwrite_inputs=overwrite)
        with torch.no_grad():
            levels[0].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_float16_gradients_are_rounded_once_after_the_factor() -> None:
    level, ids = (torch.randn(1, 1, 100, 200) * 1.5 - 6).half().requires_grad_(), torch.full((1, 20_000), -1)
    (scaled,) = torch.autograd.grad(loss_of([level], ids, 1) * 1024, level)
    assert (scaled == 0).double().mean() < 0.1 < 0.4 < (scaled / 1024 == 0).double().mean()


@pytest.mark.parametrize("name", OPTIONS)
def test_transforms_give_the_gradients_of_permute_cat_and_the_reference(name: str) -> None:
    levels, ids = maps(TINY, dtype=torch.float64), labels(TINY, often=0.25)
    ours, theirs = (lambda levels, f=f: f(levels, ids, TINY.classes, **OPTIONS[name]) for f in (loss_of, plain))
    want = torch.func.grad(theirs)(levels)
    assert all(torch.allclose(a, b, rtol=1e-12) for a, b in zip(torch.func.grad(ours)(levels), want))
    direction = maps(TINY, dtype=torch.float64, seed=7)
    value, slope = torch.func.jvp(ours, (levels,), (direction,))
    assert torch.allclose(value, theirs(levels), rtol=1e-12)
    assert torch.allclose(slope, sum((a * b).sum() for a, b in zip(want, direction)), rtol=1e-10)
    batch = [torch.stack([level, level * 0.5]) for level in levels]
    assert torch.allclose(
        torch.vmap(lambda *x: ours(list(x)))(*batch),
        torch.stack([theirs(levels), theirs([level * 0.5 for level in levels])]),
    )


@pytest.mark.parametrize("name", ["sum", "mean", "positives"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_graph_gives_the_eager_numbers(dtype: torch.dtype, layout: str, name: str) -> None:
    torch._dynamo.reset()

    def function(*levels: Tensor) -> Tensor:
        return loss_of([level * 1 for level in levels], IDS, SHAPE.classes, **OPTIONS[name])

    inputs = leaves(maps(SHAPE, layout, dtype))
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    want, got = (
        (loss.detach(), *torch.autograd.grad(2 * loss, inputs))
        for loss in (call(*inputs) for call in (function, compiled))
    )
    assert all(torch.allclose(a, b, rtol=2 * torch.finfo(dtype).eps, atol=1e-7) for a, b in zip(want, got))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor_gives_the_eager_numbers(dynamic: bool) -> None:
    torch._dynamo.reset()

    def function(levels: list[Tensor], ids: Tensor) -> Tensor:
        return loss_of([level.relu() - 1 for level in levels], ids, 5, normalizer="positives", overwrite_inputs=True)

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for wide in (11, 12, 17) if dynamic else (11,):
        shape = Shape(sizes=((8, wide), (4, 6)))
        inputs, ids = leaves(maps(shape, "mixed")), labels(shape)
        eager, graph = (torch.autograd.grad(f(inputs, ids), inputs) for f in (function, compiled))
        # 1e-5: Inductor also compiles the reference's formulas
        assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-8) for a, b in zip(eager, graph))


def test_a_compiled_loss_is_once_differentiable_and_a_bad_id_makes_it_nan() -> None:
    torch._dynamo.reset()
    inputs, ids = leaves(maps(SHAPE)), IDS.clone()
    compiled = torch.compile(
        lambda levels, ids: loss_of(levels, ids, SHAPE.classes), fullgraph=True, backend="aot_eager"
    )
    ids[1, 3] = 93
    assert compiled(inputs, ids).isnan()


def checked(levels: list[Tensor], targets: Tensor, classes: int, **options: Any) -> Call:
    return focal_ext.sigmoid_focal_loss.__wrapped__(
        Levels(levels, classes), targets, **{"reduction": "sum", **options}
    ).call


@pytest.mark.native
@pytest.mark.parametrize("dtype, name", every_value_once(DTYPES, OPTIONS, whole=tuple(OPTIONS)[:1]))
def test_the_ops_keep_their_contracts_with_the_dispatcher(name: str, dtype: torch.dtype) -> None:
    from focal_ext._native import ops

    levels = maps(TINY, "mixed", dtype)
    call = checked(levels, labels(TINY), 2, **OPTIONS[name])
    factor = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for op in (ops.pyramid_loss, ops.pyramid_loss_and_gradient):
        torch.library.opcheck(op.default, (levels, *call))
        torch.library.opcheck(op.default, (leaves(levels), *call))
    torch.library.opcheck(ops.pyramid_gradient.default, (levels, *call, factor))
    for loss in (None, factor * 0):
        torch.library.opcheck(ops.pyramid_gradient_.default, ([level.clone() for level in levels], *call, factor, loss))


@pytest.mark.native
def test_the_ops_refuse_what_would_corrupt_memory() -> None:
    from focal_ext._native import ops

    levels = maps(TINY)
    call = checked(levels, labels(TINY), 2)
    wrong = [call._replace(**{name: torch.zeros(3)}) for name in ("weight", "alpha", "normalizer")]
    wrong += [
        call._replace(targets=call.targets[:, :3]),
        call._replace(classes=3),
        call._replace(classes=0),
        call._replace(divisor=9),
    ]
    others = [
        [],
        [levels[0], levels[1].double()],
        [levels[0].int(), levels[1].int()],
        [levels[0][..., ::2], levels[1]],
        [levels[0], levels[1][:1]],
    ]
    for bad in (*((levels, *c) for c in wrong), *((other, *call) for other in others)):
        with pytest.raises(RuntimeError):
            ops.pyramid_loss(*bad)
    for factor, loss in ((torch.ones(2), None), (torch.ones(()).double(), None), (torch.ones(()), torch.ones(2))):
        with pytest.raises(RuntimeError):
            ops.pyramid_gradient_(levels, *call, factor, loss)

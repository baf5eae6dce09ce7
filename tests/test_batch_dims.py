# Owns: a loss for each index of leading dimensions: the numbers and gradients of a call for each, what is left alone in
# backward, errors.
# Must not know: values of single calls (test_values.py, test_softmax_values.py).
from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import focal_ext
import pytest
import torch
from cases import IMPLEMENTATIONS, Implementation
from losses import DECLARED
from pairwise import pairwise
from test_autograd import Ops
from torch import Tensor

LOSSES = [name for name in focal_ext.losses.__all__ if name.endswith("_loss")]
SCORED = {name for name in LOSSES if getattr(focal_ext, name).spec.needs_scores}
PER_ROW = {name for name in LOSSES if getattr(focal_ext, name).spec.is_per_row}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# Less than a block, several blocks with a part at the end, several chunks a group, one row a group, nothing.
SHAPES = {
    "small": (2, 3, 5, 7),
    "blocks": (3, 2, 11, 91),
    "whole vectors": (5, 3, 40, 16),
    "chunks": (1, 2, 700, 80),
    "no logits": (2, 2, 0, 4),
    "no groups": (0, 2, 3, 4),
}
ROUTES = ("fused", "reference", "compiled")
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)


def is_possible(row: dict[str, Any]) -> bool:
    is_dense = row["targets"].startswith("dense")
    # 1,400 calls
    fits = (row["normalizer"] != "positives" or not is_dense) and not (
        row["shape"] == "chunks" and row["batch_dims"] == 3
    )
    return (
        fits
        and not (row["loss"] in PER_ROW and row["weight"] in ("classes", "full"))
        and (row["normalizer"] is None or row["reduction"] == "sum")
    )


AXES: dict[str, Any] = {
    "loss": LOSSES,
    "dtype": DTYPES,
    "shape": tuple(SHAPES),
    "batch_dims": (1, 2, 3),
    "targets": ("ids", "rare ids", "dense", "dense integers", "dense with ignored"),
    "reduction": ("sum", "mean"),
    "normalizer": (None, 3.0, "positives", "0-d", "each"),
    "weight": (None, "first axis", "rows", "classes", "full"),
    "upstream": ("ones", "one number", "each"),
}


def targets_of(kind: str, loss: str, x: Tensor, rng: torch.Generator) -> Any:
    rows, classes, none = x.shape[:-1], x.shape[-1], -100 if loss in PER_ROW else -2
    chance, ids = torch.rand(rows, generator=rng), torch.randint(classes, rows, generator=rng)
    if kind == "dense":
        return torch.where(torch.rand(x.shape, generator=rng) < 0.1, torch.rand(x.shape, generator=rng), 0.0).to(
            x.dtype
        )
    if kind.startswith("dense"):
        dense = torch.randint(2, x.shape, generator=rng)
        return (
            dense
            if kind == "dense integers"
            else torch.where(torch.rand(x.shape, generator=rng) < 0.02, float(none), dense.to(x.dtype))
        )
    if loss not in PER_ROW:
        ids = torch.where(chance < (0.9 if kind == "rare ids" else 0.4), -1, ids)
    ids = torch.where(chance > 0.95, none, ids)
    return (ids, torch.rand(rows, generator=rng)) if loss in SCORED else ids


def weight_of(kind: str | None, loss: str, x: Tensor, rng: torch.Generator) -> Tensor | None:
    shape = {
        None: None,
        "first axis": (x.shape[0], 1, 1, 1),
        "rows": (*x.shape[:-1], 1),
        "classes": x.shape[-1:],
        "full": x.shape,
    }[kind]
    weight = None if shape is None else torch.rand(shape, generator=rng) + 0.5
    return weight.squeeze(-1) if weight is not None and loss in PER_ROW else weight


def wide(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(wide, value))
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def one_by_one(
    loss: str, x: Tensor, targets: Any, batch: torch.Size, weight: Tensor | None, normalizer: Any, reduction: str
) -> Tensor:
    """A call of the float64 reference for each index of the batch."""
    losses = []
    weight = None if weight is None else weight.expand(x.shape[:-1] if loss in PER_ROW else x.shape)
    for index in torch.cartesian_prod(*map(torch.arange, batch)).reshape(-1, len(batch)).tolist():
        at = tuple(index)
        own = tuple(t[at] for t in targets) if isinstance(targets, tuple) else targets[at]
        of_index = normalizer[at] if isinstance(normalizer, Tensor) and normalizer.dim() else normalizer
        # A scalar is no row of targets: a row is kept as one of one.
        rows = (
            x[at][None],
            tuple(t[None] for t in own) if isinstance(own, tuple) else own[None],
            None if weight is None else weight[at][None],
        )
        losses.append(
            getattr(focal_ext.reference, loss)(
                rows[0], rows[1], weight=rows[2], normalizer=of_index, reduction=reduction
            )
        )
    return torch.stack(losses).reshape(batch) if losses else x.sum(tuple(range(len(batch), x.dim())))


def by_route(route: str, loss: str) -> Callable[..., Tensor]:
    if route == "compiled":
        torch._dynamo.reset()
        return torch.compile(getattr(focal_ext, loss), fullgraph=True, backend="aot_eager")
    return getattr(focal_ext.reference if route == "reference" else focal_ext, loss)


def check(
    function: Callable[..., Tensor],
    loss: str,
    dtype: torch.dtype,
    shape: str,
    batch_dims: int,
    targets: str,
    reduction: str,
    normalizer: Any,
    weight: str | None,
    upstream: str,
    error: float = 1e-5,
) -> None:
    rng = torch.Generator().manual_seed(zlib.crc32(repr((loss, dtype, shape, batch_dims, targets, weight)).encode()))
    x = (torch.randn(SHAPES[shape], generator=rng) * 3).to(dtype)
    batch = x.shape[:batch_dims]
    given, factor = targets_of(targets, loss, x, rng), weight_of(weight, loss, x, rng)
    numbers: dict[Any, Any] = {"0-d": torch.tensor(7.3), "each": torch.rand(batch, generator=rng) + 1}
    divisor = numbers.get(normalizer, normalizer)
    above = {
        "ones": torch.ones(batch),
        "one number": torch.tensor(3.0).expand(batch),
        "each": torch.rand(batch, generator=rng).round(decimals=1),
    }[upstream]

    leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    got = function(leaf, given, reduction=reduction, normalizer=divisor, weight=factor, batch_dims=batch_dims)
    want = one_by_one(loss, exact, wide(given), batch, wide(factor), wide(divisor), reduction)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    assert got.dtype == acc and got.shape == batch
    # 100 units of float32 are more than any formula's error (tolerances.py) and a sum of 56,000 terms of one sign; the
    # gradient is rounded at most twice.
    assert torch.allclose(got.double(), want, rtol=error, atol=1e-7)
    (gradient,), (expected,) = (
        torch.autograd.grad(got, leaf, above.to(acc)),
        torch.autograd.grad(want, exact, above.double()),
    )
    # Of a softmax it is a difference of terms, which may be as large as the largest gradient: four roundings of that.
    largest = float(expected.abs().max()) if loss in PER_ROW and expected.numel() else 0.0
    assert torch.allclose(
        gradient.double(),
        expected,
        rtol=max(2 * torch.finfo(dtype).eps, 3 * error),
        atol=max(1e-7, 4 * 2**-24 * largest),
    )


@pairwise(is_possible, **AXES, route=ROUTES)
def test_each_loss_and_its_gradient_are_those_of_a_call_of_its_own(
    loss: str,
    dtype: torch.dtype,
    shape: str,
    batch_dims: int,
    targets: str,
    reduction: str,
    normalizer: Any,
    weight: str | None,
    upstream: str,
    route: str,
) -> None:
    check(by_route(route, loss), loss, dtype, shape, batch_dims, targets, reduction, normalizer, weight, upstream)


X = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(-1, 5, (4, 6), generator=torch.Generator().manual_seed(1))


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 100, 40_000])
def test_groups_whose_factor_is_1_are_not_touched(size: int, dtype: torch.dtype) -> None:
    from focal_ext._native import ops

    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    # any product would make it a quiet one
    signalling = {
        torch.float32: 0x7F800001,
        torch.bfloat16: 0x7F81,
        torch.float16: 0x7C01,
        torch.float64: 0x7FF0000000000001,
    }[dtype]
    gradient = torch.full((5, size), signalling, dtype=integer).view(dtype)
    gradient[1::2] = 0.5
    factors = torch.tensor([1.0, 3.0, 1.0, 0.0, 1.0], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    ops.scale_(gradient, factors)
    assert (gradient.view(integer)[::2] == signalling).all() and (gradient[1] == 1.5).all() and not gradient[3].any()


def test_backward_scales_in_place_and_a_kept_graph_is_left_as_it_was() -> None:
    x, factors = X.clone().requires_grad_(), torch.tensor([1.0, 2.0, 1.0, 0.5])
    loss = focal_ext.sigmoid_focal_loss(x, IDS, reduction="mean", batch_dims=1)
    twice = [torch.autograd.grad(loss, x, factors, retain_graph=True)[0] for _ in range(2)]
    assert torch.equal(*twice) and torch.equal(torch.autograd.grad(loss, x, factors)[0], twice[0])


@pytest.mark.native
def test_one_tensor_of_the_logits_size_is_made() -> None:
    x = torch.randn(4, 3, 64, 64).bfloat16().requires_grad_()
    with Ops() as seen:
        loss = focal_ext.sigmoid_focal_loss(x, (x > 1).detach(), reduction="mean", batch_dims=2)
        loss.backward(torch.rand(4, 3))
    assert loss.shape == (4, 3) and {name for name in seen.names if "focal_ext" in name} == {
        "focal_ext.loss_and_gradient",
        "focal_ext.scale_",
    }
    assert not any(copy in name for name in seen.names for copy in ("mul", "clone", "copy", "cat"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_many_factors_at_once_are_products_in_the_gradient_s_dtype(dtype: torch.dtype) -> None:
    x, factors = X.to(dtype).clone().requires_grad_(), torch.tensor([[1.0, 2.0, 1.0, 0.5], [2.0, 4.0, 2.0, 1.0]])
    loss = focal_ext.sigmoid_focal_loss(x, IDS, reduction="mean", batch_dims=1)
    (both,) = torch.autograd.grad(loss, x, factors, is_grads_batched=True, retain_graph=True)
    assert (
        both.dtype == dtype
        and torch.equal(both[1], 2 * both[0])
        and torch.equal(both[0], torch.autograd.grad(loss, x, factors[0])[0])
    )


@implementations
@pytest.mark.parametrize("bad", ["nan", "id"])
def test_what_is_nan_stays_in_its_group(bad: str, implementation: Implementation) -> None:
    x, ids = X.clone(), IDS.clone()
    if bad == "nan":
        x[2, 3, 1] = torch.nan
    else:
        ids[2, 3] = 77
        with pytest.raises(ValueError, match="class id 77 at anchor 15"):
            implementation.module.sigmoid_focal_loss(x, ids, reduction="sum", batch_dims=1)
    x.requires_grad_()
    function = torch.compile(
        lambda x: implementation.module.sigmoid_focal_loss(x, ids, reduction="sum", batch_dims=1), backend="aot_eager"
    )
    loss = function(x)
    assert loss.isnan().tolist() == [False, False, True, False]
    assert (torch.autograd.grad(loss.sum(), x)[0].isnan().flatten(1).any(1) == loss.isnan()).all()


@pytest.mark.native
@pytest.mark.parametrize("normalizer", [7.0, "each", "positives"])
@pytest.mark.parametrize("dtype, numel", [(torch.bfloat16, 2**20), (torch.float16, 2**17), (torch.float32, 40_000)])
def test_gradients_have_the_bits_of_a_call_for_each_group(dtype: torch.dtype, numel: int, normalizer: Any) -> None:
    """Half types look results up in a table, which groups share, or have one each, or none."""
    x, ids = (torch.randn(3, numel // 16, 16) * 3 - 4).to(dtype), torch.randint(-1, 300, (3, numel // 16))
    ids = torch.where(ids >= 16, -1, ids)
    each = torch.tensor([1.5, 2.5, 3.5]) if normalizer == "each" else normalizer
    (got,) = torch.autograd.grad(
        focal_ext.sigmoid_focal_loss(
            leaf := x.clone().requires_grad_(), ids, reduction="sum", normalizer=each, batch_dims=1
        ).sum(),
        leaf,
    )
    for i, (part, own) in enumerate(zip(x, ids)):
        alone = focal_ext.sigmoid_focal_loss(
            leaf := part.clone().requires_grad_(),
            own,
            reduction="sum",
            normalizer=each[i] if normalizer == "each" else each,
        )
        assert torch.equal(torch.autograd.grad(alone, leaf)[0], got[i])


@implementations
@pytest.mark.parametrize("loss", LOSSES)
def test_it_is_differentiable_twice_and_by_transforms(loss: str, implementation: Implementation) -> None:
    function = getattr(implementation.module, loss)
    x, ids = X.double()[:2, :2].clone().requires_grad_(), IDS[:2, :2].clamp(min=0)
    targets = (ids, torch.full(ids.shape, 0.7)) if loss in SCORED else ids

    def of(x: Tensor, targets: Any = targets) -> Tensor:
        result: Tensor = function(x, targets, reduction="mean", batch_dims=1)
        return result

    if loss in PER_ROW or not DECLARED[loss].has_constant:  # whose derivatives are no limits of differences
        assert torch.autograd.gradcheck(of, x) and torch.autograd.gradgradcheck(of, x, atol=1e-4)
    jacobian = torch.func.jacrev(of)(x.detach())
    assert not jacobian[0, 1].any() and torch.allclose(jacobian.sum(0), torch.autograd.grad(of(x).sum(), x)[0])
    mapped = torch.func.vmap(of, in_dims=(0, 0))(
        torch.stack([x, -x]).detach(), torch.utils._pytree.tree_map(lambda t: torch.stack([t, t]), targets)
    )
    assert torch.allclose(mapped, torch.stack([of(x), of(-x)]))


@pytest.mark.parametrize("layout", ["contiguous", "batch permuted", "rows permuted", "expanded"])
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "overwrite"])
def test_every_memory_layout_is_that_of_contiguous_logits(overwrite: bool, layout: str) -> None:
    given = {
        "contiguous": X * 1,
        "batch permuted": X.transpose(0, 1).contiguous().transpose(0, 1),
        "rows permuted": X[None].expand(2, -1, -1, -1).transpose(1, 2),
        "expanded": X[:, :1].expand(4, 6, 5),
    }[layout]
    if layout == "expanded" and overwrite:
        pytest.skip("expanded logits cannot be overwritten")
    ids, dims = (
        IDS.expand(2, 4, 6).transpose(1, 2) if layout == "rows permuted" else IDS,
        2 if layout == "rows permuted" else 1,
    )
    leaf, flat = given.detach().requires_grad_(), given.detach().contiguous().requires_grad_()
    inputs = leaf * 1 if overwrite else leaf
    got = focal_ext.sigmoid_focal_loss(inputs, ids, reduction="mean", batch_dims=dims, overwrite_inputs=overwrite)
    want = focal_ext.sigmoid_focal_loss(flat, ids, reduction="mean", batch_dims=dims)
    factors = torch.rand(want.shape)
    assert torch.allclose(got, want) and torch.allclose(
        torch.autograd.grad(got, leaf, factors)[0], torch.autograd.grad(want, flat, factors)[0]
    )


@implementations
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
@pytest.mark.parametrize("class_dim, batch_dims", [(1, 1), (2, 1), (2, 2), (-1, 2), (3, 3)])
@pytest.mark.parametrize("memory", ["planes", "channels_last"])
def test_classes_may_be_another_dimension_behind_the_batch(
    memory: str, class_dim: int, batch_dims: int, loss: str, implementation: Implementation
) -> None:
    x, function = torch.randn(2, 3, 4, 5), getattr(implementation.module, loss)
    if memory == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    leaf, moved = x.requires_grad_(), x.detach().movedim(class_dim, -1).contiguous().requires_grad_()
    ids = torch.randint(moved.shape[-1], moved.shape[:-1])
    got = function(leaf, ids, reduction="mean", class_dim=class_dim, batch_dims=batch_dims)
    want = function(moved, ids, reduction="mean", batch_dims=batch_dims)
    factors = torch.rand(want.shape)
    (gradient,), (expected,) = torch.autograd.grad(got, leaf, factors), torch.autograd.grad(want, moved, factors)
    assert (
        got.shape == x.shape[:batch_dims]
        and torch.allclose(got, want)
        and torch.allclose(gradient, expected.movedim(-1, class_dim), atol=1e-7)
    )


@pytest.mark.parametrize("normalizer", [None, "positives", "each"])
@pytest.mark.parametrize("loss", LOSSES)
def test_a_pyramid_has_a_loss_for_each_image(loss: str, normalizer: Any) -> None:
    images, classes, sizes = 3, 5, ((4, 6), (2, 3))
    levels = [
        torch.randn(images, 2 * classes, *size).contiguous(memory_format=m).requires_grad_()
        for size, m in zip(sizes, (torch.contiguous_format, torch.channels_last))
    ]
    ids = torch.randint(0, classes, (images, sum(2 * h * w for h, w in sizes)))
    targets = (ids, torch.rand(ids.shape)) if loss in SCORED else ids
    each, factors = torch.tensor([1.0, 2.0, 3.0]) if normalizer == "each" else normalizer, torch.tensor([1.0, 0.5, 2.0])
    got = getattr(focal_ext.pyramid, loss)(levels, targets, classes, normalizer=each, batch_dims=1)
    gradients = torch.autograd.grad(got, levels, factors)
    for i in range(images):
        own = [level[i : i + 1].detach().requires_grad_() for level in levels]
        mine = tuple(t[i : i + 1] for t in targets) if isinstance(targets, tuple) else targets[i : i + 1]
        alone = getattr(focal_ext.pyramid, loss)(
            own, mine, classes, normalizer=each[i] if normalizer == "each" else each
        )
        assert torch.allclose(got[i], alone)
        for gradient, right in zip(gradients, torch.autograd.grad(alone, own, factors[i])):
            assert torch.allclose(gradient[i : i + 1], right, atol=1e-7)


def test_a_compiled_call_holds_for_any_number_of_groups() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x, ids: focal_ext.sigmoid_focal_loss(x, ids, reduction="mean", batch_dims=1),
        fullgraph=True,
        dynamic=True,
        backend="aot_eager",
    )
    for groups in (2, 3, 4):
        x = X[:groups].clone().requires_grad_()
        assert torch.allclose(
            *(
                torch.autograd.grad(f(x, IDS[:groups]).prod(), x)[0]
                for f in (compiled, compiled._torchdynamo_orig_callable)
            )
        )


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_ops_keep_their_contracts_with_the_dispatcher(dtype: torch.dtype) -> None:
    from focal_ext._native import ops

    x = X.to(dtype)
    call = focal_ext.sigmoid_focal_loss.__wrapped__(
        x, IDS, reduction="sum", normalizer=torch.rand(4) + 1, batch_dims=1
    ).call
    factors = torch.rand(4, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for op in (ops.loss, ops.loss_and_gradient):
        torch.library.opcheck(op.default, (x.clone().requires_grad_(), *call))
    torch.library.opcheck(ops.gradient.default, (x, *call, factors))
    torch.library.opcheck(ops.gradient_.default, (x.clone(), *call, factors, factors.clone()))
    torch.library.opcheck(ops.scale_.default, (x.clone(), factors))
    for op, given in (
        (ops.gradient, (x, *call, factors[:3])),
        (ops.loss, (x, *call._replace(batch_dims=3))),
        (ops.loss, (x, *call._replace(batch_dims=2))),
        (ops.scale_, (x, factors[:3])),
    ):
        with pytest.raises(RuntimeError):
            op(*given)


def wrong_calls() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    yield {"batch_dims": 1.0}, TypeError, "batch_dims: must be an integer, got float"
    yield {"batch_dims": True}, TypeError, "batch_dims: must be an integer, got bool"
    yield {"batch_dims": None}, TypeError, "batch_dims: must be an integer, got NoneType"
    yield (
        {"batch_dims": -1},
        ValueError,
        r"batch_dims: must be in \[0, 2\] for inputs of shape \(4, 6, 5\), whose classes are dimension 2, got -1",
    )
    yield {"batch_dims": 3}, ValueError, r"batch_dims: must be in \[0, 2\].*got 3"
    yield (
        {"batch_dims": 1, "class_dim": 0},
        ValueError,
        r"batch_dims: must be in \[0, 0\].*classes are dimension 0, got 1",
    )
    yield (
        {"reduction": "none"},
        ValueError,
        "batch_dims: goes with reduction='sum' or 'mean', got reduction='none' and 1",
    )
    yield (
        {"normalizer": torch.ones(6)},
        ValueError,
        r"normalizer: a tensor must be 0-d or have shape \(4,\), that of the loss, got shape \(6,\)",
    )
    yield (
        {"normalizer": torch.ones(4), "batch_dims": 0},
        ValueError,
        r"normalizer: a tensor must be 0-d, got shape \(4,\)",
    )


@implementations
@pytest.mark.parametrize("changed, exception, sentence", wrong_calls())
def test_a_wrong_argument_is_named(
    changed: dict[str, Any], exception: type[Exception], sentence: str, implementation: Implementation
) -> None:
    with pytest.raises(exception, match=sentence):
        implementation.module.sigmoid_focal_loss(X, IDS, **{"reduction": "sum", "batch_dims": 1, **changed})


def test_a_module_has_it_and_a_pyramid_takes_one_dimension() -> None:
    module = focal_ext.SigmoidFocalLoss(reduction="mean", batch_dims=2, class_dim=3)
    assert module(X[None], IDS[None]).shape == (1, 4)
    with pytest.raises(ValueError, match="batch_dims: goes with"):
        focal_ext.SigmoidFocalLoss(batch_dims=1)
    with pytest.raises(ValueError, match="batch_dims: must be 0 or 1 for a pyramid.*got 2"):
        focal_ext.pyramid.sigmoid_focal_loss(
            [torch.randn(2, 5, 3, 3)], torch.zeros(2, 9, dtype=torch.int64), 5, batch_dims=2
        )

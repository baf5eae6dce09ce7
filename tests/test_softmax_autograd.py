# Owns: the softmax focal loss under every PyTorch feature: derivatives of any order, torch.func, compiled graphs,
# overwritten logits.
# Must not know: values (test_softmax_values.py).
from __future__ import annotations

from typing import Any

import focal_ext
import pytest
import torch
from cases import IMPLEMENTATIONS, LAYOUTS, PUBLIC, Implementation
from pairwise import every_value_once
from tolerances import units
from torch import Tensor

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([0, 1, 3, -100, 2, 2])
OPTIONS: dict[str, tuple[Tensor, dict[str, Any]]] = {
    "none": (IDS, {"reduction": "none"}),
    "mean": (IDS, {}),
    "positives": (IDS, {"reduction": "sum", "normalizer": "positives", "gamma": 0.5}),
    "weighted": (IDS, {"reduction": "sum", "gamma": 1.5, "weight": torch.rand(6), "alpha": [0.1, 0.5, 3.0, 0.9]}),
    "smoothed": (IDS, {"label_smoothing": 0.1, "gamma": 1.0}),
    "dense": (torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)), {"gamma": 2.5}),
    "cross entropy": (IDS, {"gamma": 0.0}),
}
rows = pytest.mark.parametrize("row", OPTIONS)


def total(implementation: Implementation, row: str, **changed: Any) -> Any:
    targets, options = OPTIONS[row]
    return lambda x: implementation.module.softmax_focal_loss(x, targets, **{**options, **changed})


def gradient(function: Any, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf).sum(), leaf)[0]


@implementations
@rows
def test_first_and_second_derivatives_are_those_of_finite_differences(row: str, implementation: Implementation) -> None:
    function, leaf = total(implementation, row), X.clone().requires_grad_()
    assert torch.autograd.gradcheck(function, leaf)
    assert torch.autograd.gradgradcheck(function, leaf)


@implementations
def test_targets_weight_alpha_and_normalizer_have_gradients(implementation: Implementation) -> None:
    tensors = tuple(
        t.clone().requires_grad_()
        for t in (X, OPTIONS["dense"][0], torch.rand(6).double(), torch.rand(4).double(), torch.tensor(3.0).double())
    )
    assert torch.autograd.gradcheck(
        lambda x, t, w, a, n: implementation.module.softmax_focal_loss(x, t, a, 1.5, "sum", weight=w, normalizer=n),
        tensors,
    )


@implementations
@rows
def test_func_grad_jvp_hessian_and_vmap_are_autograds(row: str, implementation: Implementation) -> None:
    function = lambda x: total(implementation, row)(x).sum()  # noqa: E731
    want = gradient(function, X)
    assert torch.allclose(torch.func.grad(function)(X), want, rtol=1e-11)
    _, slope = torch.func.jvp(function, (X,), (V,))
    assert torch.allclose(slope, (want * V).sum(), rtol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        forward = torch.autograd.forward_ad.unpack_dual(function(torch.autograd.forward_ad.make_dual(X, V))).tangent
    assert torch.allclose(forward, slope, rtol=1e-12)
    assert torch.allclose(
        torch.func.hessian(function)(X), torch.autograd.functional.hessian(function, X), rtol=1e-9, atol=1e-14
    )
    targets, options = OPTIONS[row]
    options = {name: value for name, value in options.items() if name != "weight"}
    one = lambda x, t: implementation.module.softmax_focal_loss(x, t, **options)  # noqa: E731
    batch, labels = torch.stack([X, V]), torch.stack([targets, targets.flip(0)])
    assert torch.allclose(
        torch.vmap(one)(batch, labels), torch.stack([one(x, t) for x, t in zip(batch, labels)]), rtol=1e-12
    )


@pytest.mark.native
@pytest.mark.parametrize("dtype, row", every_value_once(DTYPES, OPTIONS, whole=tuple(OPTIONS)[:1]))
def test_the_ops_keep_their_contracts_with_the_dispatcher(dtype: torch.dtype, row: str) -> None:
    from focal_ext._native import ops

    targets, options = OPTIONS[row]
    x = X.to(dtype)
    call = (x, *focal_ext.softmax_focal_loss.__wrapped__(x, targets, **options).call)
    upstream = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for op in (ops.loss, ops.loss_and_gradient, ops.loss_map):
        torch.library.opcheck(op.default, call)
        torch.library.opcheck(op.default, (call[0].clone().requires_grad_(), *call[1:]))
    for factor in (upstream, torch.rand(6).to(dtype)):
        torch.library.opcheck(ops.gradient.default, (*call, factor))
        torch.library.opcheck(ops.gradient_.default, (call[0].clone(), *call[1:], factor))
    with pytest.raises(RuntimeError, match="grad_output"):
        ops.gradient(*call, torch.ones(6, 4, dtype=dtype))
    torch.library.opcheck(ops.first_bad_id.default, (IDS, 4, -100, False))


def compiled_results(function: Any, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().clone().requires_grad_()
    loss = function(leaf, targets)
    return loss.detach(), torch.autograd.grad((loss * 2).sum(), leaf)[0]


@rows
@dtypes
def test_one_graph_gives_the_eager_numbers(dtype: torch.dtype, row: str) -> None:
    torch._dynamo.reset()
    targets, options = OPTIONS[row]
    function = lambda x, t: PUBLIC.module.softmax_focal_loss(x * 1, t, **options)  # noqa: E731
    x = X.to(dtype)
    eager, compiled = (
        compiled_results(f, x, targets)
        for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
    )
    near = {"rtol": max(2 * torch.finfo(dtype).eps, units("reference", dtype, "softmax sum")), "atol": 1e-7}
    for got, want in zip(compiled, eager):
        assert got.dtype == want.dtype and torch.allclose(got, want, **near)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 4)], ids=str)
@dtypes
def test_a_single_row_and_permuted_rows_compile_too(
    dtype: torch.dtype,
    shape: tuple,
) -> None:
    torch._dynamo.reset()
    x, ids = torch.randn(shape).to(dtype), torch.randint(4, shape[:-1])
    for layout in ("contiguous", "classes slowest", "rows permuted") if len(shape) > 1 else ("contiguous",):
        function = lambda x, t, layout=layout: PUBLIC.module.softmax_focal_loss(  # noqa: E731
            LAYOUTS[layout](x), t, reduction="none"
        )
        eager, compiled = (
            compiled_results(f, x, ids)
            for f in (function, torch.compile(function, fullgraph=True, backend="aot_eager"))
        )
        assert torch.equal(eager[0], compiled[0]) and torch.allclose(
            eager[1], compiled[1], rtol=2 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor_gives_the_eager_numbers(dynamic: bool) -> None:
    torch._dynamo.reset()
    function = lambda x, t: (  # noqa: E731
        PUBLIC.module.softmax_focal_loss(x.transpose(0, 1), t, gamma=1.5)
        + PUBLIC.module.softmax_focal_loss(x, t.t(), reduction="none").sum()
    )
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for rows in (12, 13, 20) if dynamic else (12,):
        x, ids = torch.randn(rows, 3, 5), torch.randint(5, (3, rows))
        for got, want in zip(compiled_results(compiled, x, ids), compiled_results(function, x, ids)):
            assert torch.allclose(got, want, rtol=units("reference", torch.float32, "softmax sum"), atol=1e-7)


def test_a_bad_id_in_a_compiled_graph_makes_its_row_nan_and_no_other() -> None:
    torch._dynamo.reset()
    ids, x = torch.tensor([0, 4, -1, 3, -100]), torch.randn(5, 4, requires_grad=True)
    loss = torch.compile(
        lambda x: PUBLIC.module.softmax_focal_loss(x, ids, reduction="none"), fullgraph=True, backend="aot_eager"
    )(x)
    bad = torch.tensor([False, True, True, False, False])
    assert torch.equal(loss.isnan(), bad) and torch.equal(
        torch.autograd.grad(loss.sum(), x)[0].isnan(), bad[:, None].expand(5, 4)
    )


@pytest.mark.native
@dtypes
@pytest.mark.parametrize("layout", ["contiguous", "rows permuted", "classes slowest", "columns sliced"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("targets", ["ids", "dense"])
def test_the_gradient_is_written_over_the_logits(targets: str, reduction: str, layout: str, dtype: torch.dtype) -> None:
    results = []
    for overwrite in (False, True):
        leaf = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        inner = LAYOUTS[layout](leaf * 1)
        t = (
            torch.randint(5, (3, 40), generator=torch.Generator().manual_seed(2))
            if targets == "ids"
            else torch.rand(3, 40, 5, generator=torch.Generator().manual_seed(2)).to(dtype)
        )
        loss = PUBLIC.module.softmax_focal_loss(inner, t, reduction=reduction, overwrite_inputs=overwrite)
        memory = inner.data_ptr()
        at_once = overwrite and reduction != "none" and dtype != torch.float16
        # a view that was written is a new tensor to autograd
        seen = (leaf,) if at_once and inner._base is not None else (leaf, inner)
        got, *over = torch.autograd.grad(
            loss, seen, torch.rand(loss.shape, generator=torch.Generator().manual_seed(3)).to(loss.dtype)
        )
        results.append(got)
    assert all(g.data_ptr() == memory and torch.equal(inner.detach(), g) for g in over)
    if reduction == "none" or dtype == torch.float16:
        assert torch.equal(*results)
    else:  # the stored gradient is rounded before the factor multiplies it
        assert torch.allclose(*(g.double() for g in results), rtol=2 * torch.finfo(dtype).eps, atol=1e-40)


@implementations
def test_retained_graphs_and_factors_scale_the_gradient_once_each(implementation: Implementation) -> None:
    leaf = X.float().requires_grad_()
    loss = implementation.module.softmax_focal_loss(leaf, IDS)
    three = [torch.autograd.grad(loss, leaf, torch.tensor(f), retain_graph=True)[0] for f in (1.0, 2.0, 1.0)]
    assert torch.equal(three[0], three[2]) and torch.equal(three[1], 2 * three[0])


@pytest.mark.native
def test_the_gradient_beside_the_loss_is_the_recomputed_one() -> None:
    x, ids = (torch.randn(700, 30) * 5).requires_grad_(), torch.randint(30, (700,))
    fused, recomputed = (
        torch.autograd.grad(focal_ext.softmax_focal_loss(x, ids, reduction=r).sum(), x)[0] for r in ("sum", "none")
    )
    assert torch.equal(fused, recomputed)

# Owns: torch.func and forward-mode derivatives against autograd's, and the ops' contracts with torch's dispatcher.
# Must not know: values (test_values.py), compiled graphs (test_compile.py).
from __future__ import annotations

import focal_ext
import pytest
import torch
from cases import IMPLEMENTATIONS, PUBLIC, Implementation
from family import MEMBERS, SCORED
from losses import DECLARED
from focal_ext._call import Call
from pairwise import every_value_once
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
V = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SCORES = torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
IDS, DENSE = (
    torch.tensor([0, -1, 3, -2, 4, 2]),
    torch.rand(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
)
OPTIONS = {
    "ids sum": (IDS, {"reduction": "sum"}),
    "ids mean": (IDS, {"reduction": "mean"}),
    "ids positives": (IDS, {"reduction": "sum", "normalizer": "positives"}),
    "pairs": ((IDS, SCORES), {"reduction": "sum", "modulator_gradient": False}),
    "dense": (DENSE, {"reduction": "mean", "gamma": 1.5}),
    "weighted": (
        IDS,
        {"reduction": "sum", "gamma": 0.5, "weight": torch.rand(6, 1).double(), "alpha": [0.1, 0.5, 0.25, 0.9]},
    ),
}
LOSS_OF = dict.fromkeys(OPTIONS, "sigmoid_focal_loss")
for name, member in MEMBERS.items():
    if member.loss == "sigmoid_focal_loss" and not member.options:
        continue
    pairs = member.loss in SCORED
    OPTIONS[name] = ((IDS, SCORES) if pairs else IDS, {"reduction": "sum", "normalizer": "positives", **member.options})
    if member.options:  # sparse, and 1 and 0 among them
        OPTIONS[f"{name}, dense"] = (DENSE.round() * (DENSE if pairs else 1), {"reduction": "mean", **member.options})
    LOSS_OF |= dict.fromkeys((name, f"{name}, dense"), member.loss)
rows = pytest.mark.parametrize("row", OPTIONS)


def function_of(implementation: Implementation, row: str) -> object:
    return getattr(implementation.module, LOSS_OF[row])


def total(implementation: Implementation, row: str, **changed: object) -> object:
    targets, options = OPTIONS[row]
    return lambda x: function_of(implementation, row)(x, targets, **{**options, **changed})


def gradient(function: object, x: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(function(leaf), leaf)[0]


@implementations
@rows
def test_func_grad_jvp_and_hessian_are_autograds(row: str, implementation: Implementation) -> None:
    function = total(implementation, row)
    want = gradient(function, X)
    assert torch.allclose(torch.func.grad(function)(X), want, rtol=1e-12)
    value, slope = torch.func.jvp(function, (X,), (V,))
    assert torch.allclose(value, function(X), rtol=1e-12) and torch.allclose(slope, (want * V).sum(), rtol=1e-10)
    with torch.autograd.forward_ad.dual_level():
        forward = torch.autograd.forward_ad.unpack_dual(function(torch.autograd.forward_ad.make_dual(X, V))).tangent
    assert torch.allclose(forward, slope, rtol=1e-12)
    hessian = torch.autograd.functional.hessian(function, X)
    assert torch.allclose(torch.func.hessian(function)(X), hessian, rtol=1e-9, atol=1e-15)
    if DECLARED[LOSS_OF[row]].has_constant or not OPTIONS[row][1].get("modulator_gradient", True):
        return  # the first derivative moves with what is a constant in the second
    step = 1e-6
    finite = (gradient(function, X + step * V) - gradient(function, X - step * V)) / (2 * step)
    assert torch.allclose(torch.einsum("abcd,cd->ab", hessian, V), finite, rtol=1e-5, atol=1e-8)


@implementations
@rows
def test_vmap_over_a_batch_is_a_loop_over_it(row: str, implementation: Implementation) -> None:
    targets, options = OPTIONS[row]
    options = {name: value for name, value in options.items() if name != "weight"}
    parts = targets if isinstance(targets, tuple) else (targets,)
    batch, labels = torch.stack([X, V, X * 2]), [torch.stack([t, t.flip(0), t.roll(1, 0)]) for t in parts]

    def one(x: Tensor, *t: Tensor) -> Tensor:
        return function_of(implementation, row)(x, t if len(t) == 2 else t[0], **options)

    looped = torch.stack([one(x, *t) for x, *t in zip(batch, *labels)])
    assert torch.allclose(torch.vmap(one)(batch, *labels), looped, rtol=1e-12)
    each = torch.stack([gradient(lambda x, t=t: one(x, *t), x) for x, *t in zip(batch, *labels)])
    assert torch.allclose(torch.vmap(torch.func.grad(one))(batch, *labels), each, rtol=1e-12)
    jacobian = torch.func.jacrev(one)(X, *(t[0] for t in labels))
    assert torch.allclose(jacobian, each[0], rtol=1e-12)


@implementations
@rows
def test_a_batch_of_upstream_gradients_gives_a_batch_of_gradients(row: str, implementation: Implementation) -> None:
    function = total(implementation, row)
    leaf, factors = X.clone().requires_grad_(), torch.tensor([1.0, 3.0, -2.0]).double()
    (batch,) = torch.autograd.grad(function(leaf), leaf, factors, is_grads_batched=True)
    assert torch.allclose(batch, factors[:, None, None] * gradient(function, X), rtol=1e-12)
    unreduced = total(implementation, row, reduction="none", normalizer=None)
    jacobian = torch.autograd.functional.jacobian(unreduced, X, vectorize=True)
    assert torch.allclose(jacobian.sum((0, 1)), gradient(lambda x: unreduced(x).sum(), X), rtol=1e-12)


@implementations
@rows
def test_create_graph_differentiates_a_penalty_on_the_gradient(row: str, implementation: Implementation) -> None:
    function = total(implementation, row)

    def penalty(x: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(function(x), x, create_graph=True)
        return slope.square().sum()

    leaf = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(penalty(leaf), leaf)
    assert torch.allclose(got, 2 * torch.autograd.functional.hvp(function, X, gradient(function, X))[1], rtol=1e-10)


def op_arguments(dtype: torch.dtype, row: str) -> tuple[object, ...]:
    targets, options = OPTIONS[row]
    x = X.to(dtype)
    return x, *function_of(PUBLIC, row).__wrapped__(x, targets, **options).call


@pytest.mark.native
@pytest.mark.parametrize("dtype, row", every_value_once(DTYPES, OPTIONS, whole=("ids sum",)))
def test_the_ops_keep_their_contracts_with_the_dispatcher(dtype: torch.dtype, row: str) -> None:
    from focal_ext._native import ops

    call = op_arguments(dtype, row)
    upstream = torch.ones((), dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    for op in (ops.loss, ops.loss_and_gradient, ops.loss_map):
        torch.library.opcheck(op.default, call)
        torch.library.opcheck(op.default, (call[0].clone().requires_grad_(), *call[1:]))
    torch.library.opcheck(ops.gradient.default, (*call, upstream))
    torch.library.opcheck(ops.gradient.default, (*call, torch.rand(6, 4).to(dtype)))
    torch.library.opcheck(ops.gradient_.default, (call[0].clone(), *call[1:], upstream, None))
    torch.library.opcheck(ops.scale_.default, (call[0].clone(), upstream * 3))
    loss, stored = ops.loss_and_gradient(call[0].clone().requires_grad_(), *call[1:])
    assert loss.requires_grad and not stored.requires_grad
    if call[1].dim() == 1:
        torch.library.opcheck(ops.first_bad_id.default, (call[1], 4, -2))


@pytest.mark.native
def test_the_ops_take_the_fields_of_a_call_in_their_order() -> None:
    from focal_ext._native import OPS, PYRAMID_OPS, ops

    for name in (*OPS, *PYRAMID_OPS):
        names = [a.name for a in getattr(ops, name).default._schema.arguments]
        assert name in ("scale_", "first_bad_id") or names[1 : 1 + len(Call._fields)] == list(Call._fields)


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_scaling_by_1_touches_nothing_and_by_another_number_is_a_product(dtype: torch.dtype) -> None:
    from focal_ext._native import ops

    x = torch.randn(40_000).to(dtype)
    for factor in (1.0, 3.0, 0.0, float("inf"), float("nan")):
        y = x.clone()
        ops.scale_(y, torch.tensor(factor, dtype=torch.float64 if dtype == torch.float64 else torch.float32))
        assert torch.equal(y.nan_to_num(), (x * factor).nan_to_num())


@pytest.mark.native
def test_ops_refuse_what_would_corrupt_memory() -> None:
    from focal_ext._native import ops

    x, *call = op_arguments(torch.float32, "ids sum")
    short, wrong = torch.tensor([0, 1]), torch.zeros(3)
    call = Call(*call)
    wrongs = [call._replace(**{name: wrong}) for name in ("scores", "weight", "alpha", "normalizer")]
    for bad in (
        (x, *call._replace(targets=short)),
        *((x, *c) for c in wrongs),
        (x, *call._replace(loss=99)),
        (x.int(), *call),
    ):
        with pytest.raises(RuntimeError):
            ops.loss(*bad)
    with pytest.raises(RuntimeError):
        ops.gradient_(torch.randn(4, 6).t(), *call, torch.ones(()), None)
    with pytest.raises(RuntimeError):
        ops.gradient(x, *call, torch.ones(3))
    assert focal_ext.build_info()["backend"] == "native"


def test_logits_left_from_a_finished_transform_keep_their_gradient() -> None:
    factor, left = torch.rand(6, 4, requires_grad=True), []
    torch.func.grad(lambda x: left.append(x * factor) or x.sum())(torch.randn(6, 4))
    gradients = [
        torch.autograd.grad(
            module.sigmoid_focal_loss(left[0], torch.tensor([0, 3, -1, 2, 4, 1]), reduction="sum"),
            factor,
            retain_graph=True,
        )[0]
        for module in (PUBLIC.module, PUBLIC.module.reference)
    ]
    assert torch.allclose(*gradients, rtol=1e-5)

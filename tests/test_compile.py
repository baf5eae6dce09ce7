# Owns: torch.compile: one graph without breaks, forward and backward, and the eager numbers.
# Must not know: values (test_values.py).
from __future__ import annotations

import re

import pytest
import torch
from cases import LAYOUTS, PUBLIC
from focal_ext._torch_private import outside_old_graphs
from tolerances import units
from family import EVERYDAY, MEMBERS
from pairwise import every_value_once, taking_turns
from torch import Tensor

loss_of = PUBLIC.module.sigmoid_focal_loss
CALLS = {
    "none": {"reduction": "none"},
    "sum": {"reduction": "sum"},
    "mean": {"reduction": "mean"},
    "positives": {"reduction": "sum", "normalizer": "positives"},
    "tensor": {"reduction": "sum", "normalizer": torch.tensor(3.0)},
    "weighted": {
        "reduction": "sum",
        "weight": torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0]),
        "alpha": [0.1, 0.2, 0.3, 0.4, 0.5],
        "gamma": 1.5,
    },
    "overwriting": {"reduction": "sum", "overwrite_inputs": True},
}


def both(function: object, compiled: object, x: Tensor, targets: Tensor) -> None:
    """Asserts that loss and gradient are equal, for a graph that is not kept and a factor that is not 1."""
    results = []
    for call in (function, compiled):
        leaf = x.detach().clone().requires_grad_()
        loss = call(leaf, targets)
        results.append((loss.detach(), torch.autograd.grad((loss * 2).sum(), leaf)[0]))
    (loss, gradient), (compiled_loss, compiled_gradient) = results
    assert loss.dtype == compiled_loss.dtype and gradient.dtype == compiled_gradient.dtype
    near = {"rtol": 2 * torch.finfo(x.dtype).eps, "atol": 1e-7}  # the product with 2 may meet another rounding
    # Inductor compiles its formulas again, with other exponentials and another order of sums
    if PUBLIC.name == "reference":
        near["rtol"] = max(near["rtol"], units("reference", x.dtype, "sum"))
    assert torch.allclose(loss, compiled_loss, **near) and torch.allclose(gradient, compiled_gradient, **near)


# of the dtypes only float16 is another graph
@pytest.mark.parametrize(
    "dtype, name",
    every_value_once(
        (torch.float32, torch.float16, torch.bfloat16, torch.float64), CALLS, whole=("sum", "overwriting", "none")
    ),
)
def test_one_graph_gives_the_eager_numbers(dtype: torch.dtype, name: str) -> None:
    torch._dynamo.reset()

    def function(x: Tensor, targets: Tensor) -> Tensor:
        return loss_of(x * 1, targets, **CALLS[name])

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    both(function, compiled, torch.randn(12, 5).to(dtype), torch.randint(-2, 6, (12,)))
    with torch.no_grad():
        x, ids = torch.randn(12, 5).to(dtype), torch.randint(-2, 6, (12,))
        assert torch.equal(function(x, ids), compiled(x, ids))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_and_dense_targets_compile_too(layout: str) -> None:
    torch._dynamo.reset()

    def function(x: Tensor, targets: Tensor) -> Tensor:
        return loss_of(LAYOUTS[layout](x), targets, reduction="none")

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    both(function, compiled, torch.randn(3, 12, 5), torch.randint(-2, 6, (3, 12)))
    both(function, compiled, torch.randn(3, 12, 5), torch.rand(3, 12, 5))


@taking_turns({"dynamic": (False, True)}, reduction=("none", "sum"), member=MEMBERS)
def test_every_loss_is_one_graph_with_ids_and_with_dense_targets(reduction: str, member: str, dynamic: bool) -> None:
    loss_of = MEMBERS[member]

    def function(x: Tensor, targets: Tensor) -> Tensor:
        return loss_of(x * 1, targets, reduction=reduction)

    for targets in (lambda rows: torch.randint(-2, 6, (rows,)), lambda rows: torch.rand(rows, 5)):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for rows in (12, 7, 31) if dynamic else (12,):
                both(function, compiled, torch.randn(rows, 5), targets(rows))


@pytest.mark.native
@pytest.mark.parametrize("name", EVERYDAY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_compiled_step_is_one_pass_and_backward_reuses_the_saved_gradient(dtype: torch.dtype, name: str) -> None:
    """Reads Inductor's code: which of the ops it calls, and that the product with grad_output is written over the saved
    gradient."""
    torch._dynamo.reset()
    x, ids = torch.randn(64, 5).to(dtype).requires_grad_(), torch.randint(-2, 6, (64,))
    compiled = torch.compile(lambda x: MEMBERS[name](x * 1, ids, reduction="sum"), fullgraph=True)
    _, (forward, backward) = torch._inductor.utils.run_fw_bw_and_get_code(lambda: compiled(x))
    called = [set(re.findall(r"torch\.ops\.focal_ext\.(\w+)", code)) for code in (forward, backward)]
    if dtype is torch.float16:  # stored unscaled it would underflow: recomputed once the factor is known
        assert called == [{"loss"}, {"gradient"}]
    else:
        assert called == [{"loss_and_gradient"}, set()]
        body = backward[backward.index("def call(") : backward.index("runner = ")]
        assert "empty_strided" not in body and "# reuse" in body


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_inductor_gives_the_eager_numbers(dynamic: bool) -> None:
    torch._dynamo.reset()

    def function(x: Tensor, targets: Tensor) -> Tensor:
        return loss_of(x.transpose(0, 1), targets, gamma=1.5, reduction="sum", normalizer="positives") + loss_of(
            x, targets.t(), reduction="mean"
        )

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic)
    for rows in (12, 13, 20) if dynamic else (12,):
        both(function, compiled, torch.randn(rows, 3, 5), torch.randint(-2, 6, (3, rows)))


def test_compiled_float16_gradients_are_rounded_once_after_the_factor_too() -> None:
    torch._dynamo.reset()
    x, ids = (torch.randn(20_000, 1) * 1.5 - 6).half(), torch.full((20_000,), -1)
    gradients = []
    for call in (loss_of, torch.compile(loss_of, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        gradients.append(torch.autograd.grad(call(leaf, ids, reduction="sum") * 1024, leaf)[0])
    assert torch.equal(*gradients) and (gradients[1] == 0).double().mean() < 0.1


def test_a_bad_id_in_a_compiled_graph_makes_its_row_nan_and_no_other() -> None:
    torch._dynamo.reset()
    ids = torch.tensor([0, 93, -1, -3])
    x = torch.randn(4, 5, requires_grad=True)
    loss = torch.compile(lambda x: loss_of(x, ids), fullgraph=True, backend="aot_eager")(x)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    bad = torch.tensor([False, True, False, True])[:, None].expand(4, 5)
    assert torch.equal(loss.isnan(), bad) and torch.equal(gradient.isnan(), bad)


def test_before_torch_2_10_the_graph_breaks_at_the_loss() -> None:
    ids, x = torch.randint(-1, 5, (7,)), torch.randn(7, 5)
    outside = outside_old_graphs(loss_of, "2.9.1+cpu")
    compiled = torch.compile(lambda x: 3 * outside(x * 2, ids, reduction="sum"), backend="eager")
    assert torch.equal(compiled(x), 3 * loss_of(x * 2, ids, reduction="sum"))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda x: outside(x, ids), backend="eager", fullgraph=True)(x)
    assert outside_old_graphs(loss_of, "2.10.0a0") is loss_of

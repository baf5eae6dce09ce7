# Owns: what records a call with example tensors: make_fx in all modes, torch.jit.trace, saved and loaded again,
# torch.onnx.export.
# Must not know: values (test_values.py); torch.compile and torch.export, which have files of their own.
from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import focal_ext
import pytest
import torch
from family import EVERYDAY, Member, every_loss
from focal_ext import compat
from pairwise import pairwise
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

SOFTMAX = Member("softmax_focal_loss", {"ignore_index": -2})
LOSSES = {**EVERYDAY, "softmax focal": SOFTMAX}
every_row_loss = pytest.mark.parametrize("loss_of", LOSSES.values(), ids=LOSSES)
REDUCTIONS = ("none", "sum", "mean", "positives")
OPTIONS = {"positives": {"reduction": "sum", "normalizer": "positives"}}
# float64 in another order and by another formula: some units of 2^-53 of values around 1.
CLOSE = {"rtol": 1e-11, "atol": 1e-12}


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def options(reduction: str) -> dict[str, str]:
    return OPTIONS.get(reduction, {"reduction": reduction})


def batch(rows: int, dense: bool = False) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, 5, (rows,))
    ids[0] = -2  # ignored by all
    return randn(rows, 5), torch.rand(rows, 5, dtype=torch.float64) if dense else ids


# ---- make_fx ---------------------------------------------------------------------------------------------


# A loss meets every mode, reduction and kind of targets; how a graph is recorded is the same for all losses.
@pairwise(loss=LOSSES, reduction=("none", "sum"), mode=("real", "real, before dispatch", "fake", "symbolic"))
def test_make_fx_records_a_loss_that_gives_the_eager_numbers(loss: str, reduction: str, mode: str) -> None:
    def function(x: Tensor, targets: Tensor) -> Tensor:
        return LOSSES[loss](x, targets, reduction=reduction)

    for dense in (False, True):
        graph = make_fx(function, tracing_mode=mode.split(",")[0], pre_dispatch="before" in mode)(*batch(6, dense))
        given = batch(6, dense)
        torch.testing.assert_close(graph(*given), function(*given), **CLOSE)


@pytest.mark.parametrize(
    "mode, reduction", [("real", "none"), ("real", "sum"), ("real", "mean"), ("fake", "positives"), ("symbolic", "sum")]
)
@every_row_loss
def test_make_fx_records_the_gradient_with_an_upstream_factor(loss_of: Member, reduction: str, mode: str) -> None:
    def function(x: Tensor, targets: Tensor, factor: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad((loss_of(x, targets, **options(reduction)) * factor).sum(), x)[0]

    graph = make_fx(function, tracing_mode=mode)(*batch(6), torch.tensor(1.0, dtype=torch.float64))
    for factor in (1.0, 3.0):
        given = (*batch(6), torch.tensor(factor, dtype=torch.float64))
        torch.testing.assert_close(graph(*given), function(*given), **CLOSE)


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_records_a_pyramid(mode: str) -> None:
    def function(a: Tensor, b: Tensor, ids: Tensor) -> list[Tensor]:
        levels = [a.detach().requires_grad_(), b.detach().requires_grad_()]
        loss = focal_ext.pyramid.sigmoid_focal_loss(levels, ids, 5, normalizer="positives")
        return [loss, *torch.autograd.grad(loss * 2, levels)]

    def given() -> tuple[Tensor, ...]:
        return randn(2, 10, 3, 3), randn(2, 10, 2, 2), torch.randint(-2, 6, (2, 26))

    graph, new = make_fx(function, tracing_mode=mode)(*given()), given()
    for got, want in zip(graph(*new), function(*new), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


# ---- torch.jit.trace -------------------------------------------------------------------------------------


class Network(nn.Module):
    """A layer and its loss."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor], features: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.layer, self.loss = nn.Linear(features, classes).double(), loss

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        return self.loss(self.layer(features), targets)


def traced(network: nn.Module, *example: Any) -> list[torch.jit.ScriptModule]:
    """The traced network and the same after saving and loading. No size that Python looked at may be baked in with a
    warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        graph = torch.jit.trace(network, example)
        file = io.BytesIO()
        torch.jit.save(graph, file)
        file.seek(0)
        return [graph, torch.jit.load(file)]


def same_loss_and_gradients(network: nn.Module, graphs: list[torch.jit.ScriptModule], *given: Any) -> None:
    want = network(*given)
    gradients = torch.autograd.grad(want.sum() * 2, list(network.parameters()))
    for graph in graphs:
        got = graph(*given)
        torch.testing.assert_close(got, want, **CLOSE)
        for g, w in zip(torch.autograd.grad(got.sum() * 2, list(graph.parameters())), gradients, strict=True):
            torch.testing.assert_close(g, w, **CLOSE)


# 'positives' counts class ids
@pairwise(
    lambda row: not (row["dense"] and row["reduction"] == "positives"),
    loss=LOSSES,
    reduction=REDUCTIONS,
    dense=(False, True),
)
def test_a_traced_network_with_its_loss_gives_the_eager_numbers_for_any_number_of_rows(
    loss: str, reduction: str, dense: bool
) -> None:
    network = Network(lambda x, t: LOSSES[loss](x, t, **options(reduction)))

    def given(rows: int) -> tuple[Tensor, Tensor]:
        return randn(rows, 8), batch(rows, dense)[1]

    graphs = traced(network, *given(6))
    for rows in (6, 2, 40):
        same_loss_and_gradients(network, graphs, *given(rows))


COMPAT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "torchvision": lambda x, t: compat.torchvision.sigmoid_focal_loss(x, t, reduction="mean"),
    "detr": lambda x, t: compat.detr.sigmoid_focal_loss(x, t, 3.0),
    "fvcore": lambda x, t: compat.fvcore.sigmoid_focal_loss(x, t, reduction="mean"),
    "module": focal_ext.SigmoidFocalLoss(reduction="mean", weight=torch.rand(5).double()),
    "class alphas": lambda x, t: focal_ext.sigmoid_focal_loss(x, t, [0.1, 0.2, 0.3, 0.4, 0.5], reduction="mean"),
}


@pytest.mark.parametrize("name", COMPAT)
def test_a_traced_network_with_another_librarys_loss_gives_the_eager_numbers(name: str) -> None:
    network = Network(COMPAT[name])
    graphs = traced(network, randn(6, 8), torch.rand(6, 5).double())
    same_loss_and_gradients(network, graphs, randn(6, 8), torch.rand(6, 5).double())
    same_loss_and_gradients(network, graphs, randn(9, 8), torch.rand(9, 5).double())


class Pyramid(nn.Module):
    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.head, self.fused = focal_ext.FusedFocalHead(4, 2, 5, normalizer="positives").double(), fused

    def forward(self, a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
        if self.fused:
            return self.head([a, b], ids)
        levels = [torch.conv2d(x, self.head.weight, self.head.bias, padding=1) for x in (a, b)]
        return focal_ext.pyramid.sigmoid_focal_loss(levels, ids, 5, normalizer="positives")


@pytest.mark.parametrize("fused", [False, True], ids=["pyramid", "fused head"])
def test_a_traced_pyramid_gives_the_eager_numbers_for_any_number_of_images(fused: bool) -> None:
    def given(images: int) -> tuple[Tensor, ...]:
        return randn(images, 4, 3, 3), randn(images, 4, 2, 2), torch.randint(-2, 6, (images, 26))

    network = Pyramid(fused)
    graphs = traced(network, *given(2))
    for images in (2, 1, 3):
        same_loss_and_gradients(network, graphs, *given(images))


@every_loss
def test_a_bad_class_id_makes_a_traced_loss_nan(loss_of: Member) -> None:
    network = Network(lambda x, t: loss_of(x, t, reduction="sum"))
    graph, *_ = traced(network, randn(3, 8), torch.tensor([0, 1, 2]))
    assert graph(randn(3, 8), torch.tensor([0, 1, 9])).isnan()


# ---- torch.onnx.export -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamo", [False, True], ids=["by tracing", "by torch.export"])
def test_onnx_holds_a_network_with_its_loss(dynamo: bool, tmp_path: Path) -> None:
    onnx_reference = pytest.importorskip("onnx.reference", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    network = Network(lambda x, t: LOSSES["sigmoid focal"](x, t, **options("positives"))).float()
    path, given = tmp_path / "network.onnx", (torch.randn(6, 8), batch(6)[1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, given, str(path), dynamo=dynamo)
    session = onnx_reference.ReferenceEvaluator(str(path))
    got = session.run(None, dict(zip(session.input_names, (t.numpy() for t in given))))[0]
    assert float(got) == pytest.approx(network(*given).item(), rel=1e-5)  # float32

# Owns: the pyramid op on a GPU: values, and that its steps neither wait nor allocate what a CUDA graph cannot hold.
# Must not know: how the kernels lay out their tiles (../test_pyramid_cuda_host.py runs them on the CPU).
from __future__ import annotations

import pytest
import torch
from cuda_host import table
from focal_ext import _native
from pyramids import DTYPES, SHAPES, labels, leaves, maps
from rounding import outside
from test_device import waiting_is_an_error
from test_pyramid import exact, pyramid_loss
from tolerances import EXPONENT, units
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "mixed")
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def step(levels: list[Tensor], ids: Tensor, classes: int, gamma: float = 2.0) -> list[Tensor]:
    loss = pyramid_loss(levels, ids, classes, gamma=gamma, normalizer="positives")
    return [loss.detach(), *torch.autograd.grad(loss, levels)]


def test_the_kernels_are_in_use_and_not_the_reference() -> None:
    assert _native.runs_on(torch.device("cuda"))


@layouts
@dtypes
@pytest.mark.parametrize("gamma", [2.0, 1.5])
@pytest.mark.parametrize("name", ["80 classes", "several chunks", "one position", "1203 classes"])
def test_loss_and_gradients_are_the_reference_s(name: str, gamma: float, dtype: torch.dtype, layout: str) -> None:
    shape = SHAPES[name]
    levels, ids = maps(shape, layout, dtype), labels(shape, often=0.02)
    got = step(leaves([level.cuda() for level in levels]), ids.cuda(), shape.classes, gamma)
    want, eps = (
        exact(levels, ids, shape.classes, gamma=gamma, normalizer="positives"),
        torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps,
    )
    added = table.ADDED.units * eps * (sum(level.numel() for level in levels) / 256 + 16384 / 32)
    assert abs(got[0].double().cpu() - want[0]) <= (units("cuda", dtype, "sum") + added) * want[0]
    # gamma multiplies the logarithm's error
    relative = (
        units("cuda", dtype, "hard") if gamma == 2 or dtype == torch.float64 else 2 * units("cuda", dtype, "hard")
    )
    relative += EXPONENT.units * eps * gamma * 100 if dtype == torch.float64 else 0.0
    for result, right in zip(got[1:], want[1:]):
        assert not outside(
            result.cpu(), right, relative * right.abs() + table.FLUSHED.units * 2.0**-126 * (1 + gamma)
        ).any()


@layouts
@dtypes
def test_a_step_never_makes_the_host_wait_and_replays_in_a_graph_to_the_bit(dtype: torch.dtype, layout: str) -> None:
    shape = SHAPES["80 classes"]
    static, ids = leaves([level.cuda() for level in maps(shape, layout, dtype)]), labels(shape).cuda()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step(static, ids, shape.classes)
        with waiting_is_an_error():
            step(static, ids, shape.classes)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = step(static, ids, shape.classes)
    for seed in (1, 2):
        fresh = [level.cuda() for level in maps(shape, layout, dtype, seed)]
        with torch.no_grad():
            for level, value in zip(static, fresh):
                level.copy_(value)
        ids.copy_(labels(shape, seed))
        graph.replay()
        assert all(torch.equal(a, b) for a, b in zip(results, step(leaves(fresh), ids, shape.classes)))

# Owns: training on two processes: the shared normaliser, DistributedDataParallel, fully_shard, logits sharded by class.
# Must not know: wrappers' calls (two_processes.py).
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import focal_ext
import pytest
import torch
import two_processes as processes
from focal_ext.distributed import mean_positives, shard_ids
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from two_processes import BATCHES, CLASSES, WORLD, batch, loss_of, model

# The sum of two float64 gradients in another order: a few units of 2^-52 of values around 1.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What the processes saved. Their exit codes count too: two_processes.py ends its group itself."""
    folder = tmp_path_factory.mktemp("two_processes")
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    children = [
        subprocess.Popen(
            [sys.executable, processes.__file__, str(rank), str(folder / "store"), str(folder / f"{rank}.pt")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for child in children:
        output, _ = child.communicate(timeout=300)
        assert child.returncode == 0, output
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def union(name: str, normalizer: Any = "positives") -> list[Tensor]:
    """Gradients of one process with the batches of all."""
    features, labels = (torch.cat(parts) for parts in zip(*(batch(name, rank) for rank in range(WORLD))))
    net = model()
    loss_of(net(features), labels, normalizer).backward()
    return [p.grad for p in net.parameters()]


@pytest.mark.parametrize("name", ["unequal", "one process without"])
def test_gradients_are_those_of_one_process_with_the_union_of_the_batches(
    name: str, found: list[dict[str, Any]]
) -> None:
    for rank in range(WORLD):
        for ours, whole in zip(found[rank]["shared"][name], union(name), strict=True):
            torch.testing.assert_close(ours, whole, **CLOSE)


@pytest.mark.parametrize("name", ["unequal", "one process without"])
def test_a_local_normaliser_gives_other_gradients(name: str, found: list[dict[str, Any]]) -> None:
    for rank in range(WORLD):
        worst = max(
            float((ours - whole).abs().max())
            for ours, whole in zip(found[rank]["local"][name], union(name), strict=True)
        )
        assert worst > 1e-3


def test_without_any_positive_the_normaliser_is_one_on_each_process(found: list[dict[str, Any]]) -> None:
    for ours, whole in zip(found[0]["shared"]["none anywhere"], union("none anywhere", float(WORLD)), strict=True):
        torch.testing.assert_close(ours, whole, **CLOSE)


@pytest.mark.parametrize("name", ["unequal", "one process without"])
def test_a_step_of_fully_sharded_parameters_is_that_of_one_process(name: str, found: list[dict[str, Any]]) -> None:
    for rank in range(WORLD):
        for stepped, start, gradient in zip(found[rank]["step"][name], model().parameters(), union(name), strict=True):
            torch.testing.assert_close(stepped, start.detach() - gradient, **CLOSE)


def test_shards_of_classes_add_up_to_the_whole(found: list[dict[str, Any]]) -> None:
    features, labels = batch("unequal", 0)
    logits = model()(features).detach().requires_grad_()
    loss = loss_of(logits, labels, "positives")
    loss.backward()
    for result in found:
        torch.testing.assert_close(result["classes"]["loss"], loss.detach(), **CLOSE)
        torch.testing.assert_close(result["classes"]["gradient"], logits.grad, **CLOSE)


@pytest.mark.parametrize("reduction", processes.REDUCTIONS)
@pytest.mark.parametrize(
    "loss, placement",
    [(loss, p) for loss in processes.LOSSES for p in processes.PLACEMENTS if processes.is_offered(loss, p)],
)
def test_dtensors_give_the_numbers_of_one_process(
    loss: str, reduction: str, placement: str, found: list[dict[str, Any]]
) -> None:
    want = processes.loss_and_gradient(loss, reduction, *processes.rows_of(loss, reduction))
    for result in found:
        for ours, plain in zip(result["DTensors"][loss, reduction, placement], want, strict=True):
            torch.testing.assert_close(ours, plain, **CLOSE)


def test_dtensors_that_cannot_be_taken_are_refused_with_the_way_out(found: list[dict[str, Any]]) -> None:
    for result in found:
        logits, ids, classes = result["refusals"]
        assert "inputs: the softmax of a row needs all its classes, got a DTensor sharded by classes" in classes
        assert "targets: must be a DTensor as inputs is, got Tensor; bring both to one form" in logits
        assert "targets: must be a plain tensor as inputs is, got DTensor" in ids


def test_the_mean_is_over_the_processes_of_the_group_and_at_least_one(found: list[dict[str, Any]]) -> None:
    for rank, result in enumerate(found):
        assert {name: mean.item() for name, mean in result["mean"].items()} == {
            "unequal": 5.5,
            "one process without": 2.5,
            "none anywhere": 1.0,
        }
        assert result["own group"].item() == BATCHES["unequal"][rank][0]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8, torch.uint8, torch.uint16])
def test_without_process_group_it_counts_as_the_loss_does(dtype: torch.dtype) -> None:
    labels = torch.tensor([[0, 5, 6], [3, 2, 6]]).to(dtype)
    count = mean_positives(labels, CLASSES, ignore_index=3)
    assert count.shape == () and count.dtype == torch.float32 and count.item() == 3
    assert mean_positives(torch.full((4,), 6).to(dtype), CLASSES).item() == 1
    x = torch.randn(2, 3, CLASSES, dtype=torch.float64)
    expected = focal_ext.sigmoid_focal_loss(x, labels, reduction="sum", normalizer="positives", ignore_index=3)
    torch.testing.assert_close(
        focal_ext.sigmoid_focal_loss(x, labels, reduction="sum", normalizer=count, ignore_index=3), expected
    )


def test_no_value_is_read() -> None:
    """A fake tensor has none: reading one, as .item() or a branch would, raises."""
    with FakeTensorMode(shape_env=ShapeEnv()):
        labels = torch.empty(7, dtype=torch.int64)
        assert mean_positives(labels, CLASSES).shape == () and shard_ids(labels, CLASSES, 0, 3).shape == (7,)


def test_ids_of_a_shard_keep_what_is_ignored_and_what_is_bad() -> None:
    labels = torch.tensor([0, 2, 3, 5, 6, -1, -2])
    assert shard_ids(labels, 6, 2, 3).tolist() == [-1, 0, 1, -1, -1, -1, -2]
    with pytest.raises(ValueError, match="at anchor 1 is outside"):
        focal_ext.sigmoid_focal_loss(torch.randn(2, 3), shard_ids(torch.tensor([0, 7]), 6, 0, 3))

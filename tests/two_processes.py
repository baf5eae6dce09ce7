# Owns: what each of two processes computes for test_distributed.py: gradients under each wrapper, saved to a file.
# Must not know: what they should be.
#
#     python tests/two_processes.py RANK STORE RESULT
from __future__ import annotations

import sys
from typing import Any

import focal_ext
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

WORLD, CLASSES, FEATURES = 2, 6, 5
# Positives among the rows of each process.
BATCHES = {"unequal": ((9, 40), (2, 30)), "one process without": ((5, 20), (0, 33)), "none anywhere": ((0, 8), (0, 9))}


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, CLASSES)).double()


def batch(name: str, rank: int) -> tuple[Tensor, Tensor]:
    """Features and labels of a process: positives, background as -1 and as CLASSES, one ignored row."""
    positives, rows = BATCHES[name][rank]
    rng = torch.Generator().manual_seed(17 * rank + rows)
    labels = torch.where(torch.rand(rows, generator=rng) < 0.5, -1, CLASSES)
    labels[:positives] = torch.randint(0, CLASSES, (positives,), generator=rng)
    labels[-1] = -2
    return torch.randn(rows, FEATURES, generator=rng, dtype=torch.float64), labels


def loss_of(logits: Tensor, labels: Tensor, normalizer: Any) -> Tensor:
    return focal_ext.sigmoid_focal_loss(logits, labels, reduction="sum", normalizer=normalizer)


def shared(labels: Tensor) -> Tensor:
    return focal_ext.distributed.mean_positives(labels, CLASSES)


def data_parallel(name: str, rank: int, normalizer: Any) -> list[Tensor]:
    features, labels = batch(name, rank)
    net = DistributedDataParallel(model())
    loss_of(net(features), labels, normalizer(labels)).backward()
    return [p.grad for p in net.parameters()]


def sharded_parameters(name: str, rank: int) -> list[Tensor]:
    """The parameters after one step."""
    features, labels = batch(name, rank)
    net = fully_shard(model(), mesh=init_device_mesh("cpu", (WORLD,)))
    loss_of(net(features), labels, shared(labels)).backward()
    torch.optim.SGD(net.parameters(), lr=1.0).step()
    return [p.full_tensor().detach() for p in net.parameters()]


def sharded_classes(rank: int) -> dict[str, Tensor]:
    features, labels = batch("unequal", 0)
    mesh = init_device_mesh("cpu", (WORLD,))
    logits = distribute_tensor(model()(features).detach(), mesh, [Shard(-1)]).requires_grad_()
    local = logits.to_local()
    first = rank * local.shape[-1]
    ids = focal_ext.distributed.shard_ids(labels, CLASSES, first, local.shape[-1])
    part = loss_of(local, ids, shared(labels))
    whole = DTensor.from_local(part, mesh, [Partial()]).full_tensor()
    whole.backward()
    return {"loss": whole.detach(), "gradient": logits.grad.full_tensor()}


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    own = [dist.new_group([other]) for other in range(WORLD)][rank]
    found = {
        "shared": {name: data_parallel(name, rank, shared) for name in BATCHES},
        "local": {name: data_parallel(name, rank, lambda labels: "positives") for name in BATCHES},
        "step": {name: sharded_parameters(name, rank) for name in BATCHES},
        "classes": sharded_classes(rank),
        "mean": {name: shared(batch(name, rank)[1]) for name in BATCHES},
        "own group": focal_ext.distributed.mean_positives(batch("unequal", rank)[1], CLASSES, own),
    }
    torch.save(found, result)
    # A group that is left to the interpreter's exit tears down its threads and sockets in any order, beside the other process's: end it here.
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

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
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

WORLD, CLASSES, FEATURES = 2, 6, 5
LOSSES = focal_ext.reference.__all__
SCORED = [name for name in LOSSES if getattr(focal_ext, name).spec.needs_scores]
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


PLACEMENTS = {"replicated": Replicate(), "rows": Shard(0), "classes": Shard(1)}
# Reductions of DTensors, and whether the targets are dense.
REDUCTIONS = {
    "none": {"reduction": "none"},
    "mean": {"reduction": "mean"},
    "positives": {"reduction": "sum", "normalizer": "positives"},
    "dense": {"reduction": "mean"},
}


def rows_of(loss: str, reduction: str) -> tuple[Tensor, Any]:
    """Logits and targets, the same on every process."""
    rng = torch.Generator().manual_seed(3)
    logits = torch.randn(8, CLASSES, generator=rng, dtype=torch.float64)
    if reduction == "dense":
        return logits, torch.rand(8, CLASSES, generator=rng, dtype=torch.float64)
    ids = torch.tensor([0, 5, 2, 1, 3, 4, -2 if loss != "softmax_focal_loss" else -100, 1])
    return logits, (ids, torch.rand(8, generator=rng, dtype=torch.float64)) if loss in SCORED else ids


def loss_and_gradient(loss: str, reduction: str, logits: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    leaf = logits.detach().requires_grad_()
    value = getattr(focal_ext, loss)(leaf, targets, **REDUCTIONS[reduction])
    value.sum().backward()
    return value.detach(), leaf.grad


def of_dtensors(loss: str, reduction: str, placement: str) -> tuple[Tensor, Tensor]:
    mesh, place = init_device_mesh("cpu", (WORLD,)), PLACEMENTS[placement]
    logits, targets = rows_of(loss, reduction)

    def distributed(t: Tensor) -> DTensor:
        return distribute_tensor(t, mesh, [Replicate() if t.dim() == 1 and place == Shard(1) else place])

    targets = tuple(map(distributed, targets)) if isinstance(targets, tuple) else distributed(targets)
    value, gradient = loss_and_gradient(loss, reduction, distributed(logits), targets)
    return value.full_tensor(), gradient.full_tensor()


def is_offered(loss: str, placement: str) -> bool:
    return loss != "softmax_focal_loss" or placement != "classes"


def refusals() -> list[str]:
    """What is said of a DTensor beside a plain tensor."""
    mesh, said = init_device_mesh("cpu", (WORLD,)), []
    logits, ids = rows_of("sigmoid_focal_loss", "mean")
    whole = distribute_tensor(logits, mesh, [Replicate()]), distribute_tensor(ids, mesh, [Replicate()])
    sharded = distribute_tensor(logits, mesh, [Shard(1)])
    for loss, *pair in (("sigmoid", whole[0], ids), ("sigmoid", logits, whole[1]), ("softmax", sharded, whole[1])):
        try:
            getattr(focal_ext, f"{loss}_focal_loss")(*pair)
        except (TypeError, ValueError) as error:
            said.append(str(error))
    return said


def main(rank: int, store: str, result: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    own = [dist.new_group([other]) for other in range(WORLD)][rank]
    found = {
        "shared": {name: data_parallel(name, rank, shared) for name in BATCHES},
        "local": {name: data_parallel(name, rank, lambda labels: "positives") for name in BATCHES},
        "step": {name: sharded_parameters(name, rank) for name in BATCHES},
        "classes": sharded_classes(rank),
        "DTensors": {
            (loss, r, p): of_dtensors(loss, r, p)
            for loss in LOSSES
            for r in REDUCTIONS
            for p in PLACEMENTS
            if is_offered(loss, p)
        },
        "refusals": refusals(),
        "mean": {name: shared(batch(name, rank)[1]) for name in BATCHES},
        "own group": focal_ext.distributed.mean_positives(batch("unequal", rank)[1], CLASSES, own),
    }
    torch.save(found, result)
    # A group that is left to the interpreter's exit tears down its threads and sockets in any order, beside the other
    # process's: end it here.
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])

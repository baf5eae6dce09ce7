# Owns the processes that train one network together: their group, who speaks for them, and how their losses add up.
# Must not know models, data or what a step is.
"""torchrun --nproc-per-node 2 -m examples.retinanet ...: each process draws crops of its own, all keep the same
weights."""

import os
from contextlib import contextmanager

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from focal_ext.distributed import mean_positives


@contextmanager
def group():
    """Joins the other processes that torchrun has started, if any, and leaves them in order: gloo where tensors are on
    the CPU, nccl on GPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group()
    try:
        yield
    finally:
        dist.destroy_process_group()


def count():
    return dist.get_world_size() if dist.is_initialized() else 1


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def together(model):
    """The model as it is called in a step: its gradients are the means over the processes."""
    return DistributedDataParallel(model) if count() > 1 else model


def share(targets, num_classes):
    """What turns a loss per positive of this process into its part of the loss per positive of all: the gradients' mean
    over the processes is then that of one process with all crops."""
    return (targets >= 0).sum().clamp(min=1) / mean_positives(targets, num_classes) if count() > 1 else 1


def gathered(value):
    """The values of all processes, in order."""
    values = [None] * count()
    if count() == 1:
        return [value]
    dist.all_gather_object(values, value)
    return values


def first_alone(load):
    """load() in the first process, then in the others, which find what it has fetched."""
    if rank() > 0:
        dist.barrier()
    loaded = load()
    if rank() == 0 and count() > 1:
        dist.barrier()
    return loaded

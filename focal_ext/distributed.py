# Owns: what a loss needs to know of other processes: the normaliser that all share, the labels of a shard of classes.
# Must not know: losses, models, wrappers.
"""For training on more than one process. With DistributedDataParallel or fully_shard, which average gradients over
processes, this gives the gradients of one process with the batches of all::

    n = focal_ext.distributed.mean_positives(labels, classes)
    loss = focal_ext.sigmoid_focal_loss(logits, labels, reduction="sum", normalizer=n)
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from ._reference import bad_ids, widened


def mean_positives(
    targets: Tensor, num_classes: int, group: dist.ProcessGroup | None = None, ignore_index: int | None = -2
) -> Tensor:
    """The number of positives per process, averaged over the processes of `group` and at least 1.

    All processes of the group must call it, those without positives too. Nothing waits for a device. With gradient
    accumulation the targets are those of all parts of the batch.

    Args:
        targets: class ids of any shape and integer dtype; those in [0, num_classes) other than ignore_index count.
        num_classes: the number of classes.
        group: the processes to average over; all by default. Without torch.distributed, this process alone.
        ignore_index: as in the loss.

    Returns:
        A 0-d float32 tensor on the device of targets, for ``normalizer``.

    Example:
        >>> mean_positives(torch.tensor([3, -1, 80, 5, -2]), 80)
        tensor(2.)
    """
    ids = widened(targets)
    positive = (ids >= 0) & (ids < num_classes)
    if ignore_index is not None:
        positive &= ids != ignore_index
    count = positive.sum().float()
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(count, group=group)
        count = count / dist.get_world_size(group)
    return count.clamp(min=1)


def shard_ids(targets: Tensor, num_classes: int, first: int, classes: int, ignore_index: int | None = -2) -> Tensor:
    """Class ids for the logits of classes [first, first + classes) alone; other positives are background there.

    Focal loss is a sum over classes. So the sum of the shards' losses is the whole loss, and each shard's gradient is
    its part of the whole gradient. The normalizer must be that of the whole: ``mean_positives(targets, num_classes)``.

    Args:
        targets: class ids of any shape and integer dtype. One that is neither positive, background nor ignored stays
            outside every range, so that the loss refuses it.
        num_classes: the number of all classes.
        first, classes: the classes [first, first + classes) are those of the shard. The shard of a DTensor that is
            sharded on the class axis is ``logits.to_local()``.
        ignore_index: as in the loss.

    Returns:
        int64 ids for ``logits[..., first : first + classes]``.
    """
    ids = widened(targets)
    here = (ids >= first) & (ids < first + classes)
    known = ~bad_ids(ids, num_classes, None)
    moved = torch.where(here, ids - first, torch.where(known, -1, torch.iinfo(torch.int64).min))
    return moved if ignore_index is None else torch.where(ids == ignore_index, ids, moved)

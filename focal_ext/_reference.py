# Owns: the reference: every loss in plain PyTorch by its textbook formula, the oracle of every test, and the fallback
# wherever the fused kernels do not go.
# Must not know: the native library, signatures, any one formula.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from . import _factors as factors
from ._call import Call, classes_of, has_ids, parameters_of, spec_of
from ._elementary import bounded
from ._symbols import holds, unless_constant
from ._torch_private import is_jit_traced


def _one_hot(ids: Tensor, classes: int, dtype: torch.dtype) -> Tensor:
    return (ids[:, None] == torch.arange(classes, device=ids.device)).to(dtype)


def widened(ids: Tensor) -> Tensor:
    """int64 ids; a uint64 beyond int64 becomes the largest int64, outside every range, instead of a negative number."""
    wide = ids.to(torch.int64)
    return torch.where(wide < 0, torch.iinfo(torch.int64).max, wide) if ids.dtype == torch.uint64 else wide


def bad_ids(ids: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> Tensor:
    """Where a widened class id is bad: not ignored, not in [0, classes), and no background. Background is -1 or
    `classes`, with one class -1 alone."""
    highest = classes if holds(classes != 1) else 0
    bad = (ids < -1) | (ids > highest) if background else (ids < 0) | (ids >= classes)
    return bad if ignore_index is None else bad & (ids != ignore_index)


def _element_losses(x: Tensor, t: Tensor, named: Tensor | None, call: Call) -> Tensor:
    """The loss of each logit, alpha included; `named`: the classes that class ids name."""
    spec = spec_of(call)
    positives = ((t > 0) if named is None else named,) if spec.splits else ()
    if spec.alpha is None:
        return spec.formula(x, t, *positives, *parameters_of(call))
    of_one, of_zero = call.numbers[:2] if call.alpha is None else (call.alpha, 1 - call.alpha)
    if positives:
        # whose factor of a target of 1 is 1
        factor = torch.where(*positives, torch.ones_like(t), unless_constant(of_zero, t))
    else:
        factor = of_one * t + of_zero * (1 - t)
    x = torch.where(factor == 0, bounded(x, 3e38), x)  # alpha 0 switches a logit off, also an infinite one
    return factor * spec.formula(x, t, *positives, *parameters_of(call))


def as_rows(levels: Sequence[Tensor], classes: int) -> Tensor:
    """The levels as [B, anchors of all levels, classes], by copies: what the ops avoid."""

    def rows(level: Tensor) -> Tensor:
        images, anchors, positions = level.shape[0], level.shape[1] // classes, level.shape[2:].numel()
        split: Tensor = level.reshape(images, anchors, classes, positions)
        return split.permute(0, 3, 1, 2).reshape(images, positions * anchors, classes)

    return torch.cat([rows(level) for level in levels], dim=1)


def in_rows(logits: Sequence[Tensor], call: Call) -> tuple[Tensor, Call]:
    """The same call over rows."""
    if not call.classes:
        return logits[0], call
    rows, weight = as_rows(logits, call.classes), call.weight
    if weight is not None:
        weight = weight[None] if weight.dim() == 1 else weight.expand(rows.shape[:2]).reshape(-1, 1)
    targets = call.targets if has_ids(logits, call) else as_rows([call.targets], call.classes)
    return rows, call._replace(targets=targets, weight=weight, classes=0)


@arguments.quiet_under_jit_trace
def compute(logits: Sequence[Tensor], call: Call, reduction: str) -> Tensor:
    """The loss of checked arguments; class ids outside the range give NaN. Plain tensors beside DTensors are the same
    on all processes."""
    if call.classes and reduction == "none" and not spec_of(call).is_per_row:  # that of the only level, in planes
        (level,), (rows, call) = logits, in_rows(logits, call)
        return compute([rows], call, reduction).movedim(-1, 1).reshape(level.shape)
    inputs, call = in_rows(logits, call)
    for name, tensor in (("inputs", inputs), ("targets", call.targets)):
        arguments.check_allocated(name, tensor)
    if arguments.is_distributed(inputs):
        from torch.distributed.tensor.experimental import implicit_replication

        placements = inputs.placements  # type: ignore[attr-defined]
        if spec_of(call).is_per_row and any(placement.is_shard(inputs.dim() - 1) for placement in placements):
            raise ValueError(
                "inputs: the softmax of a row needs all its classes, got a DTensor sharded by classes; use "
                "inputs.redistribute() to shard it by rows"
            )
        with implicit_replication():
            return _compute(inputs, call, reduction)
    return _compute(inputs, call, reduction)


def _compute(inputs: Tensor, call: Call, reduction: str) -> Tensor:
    classes = inputs.shape[-1]
    dtype = arguments.accumulation_dtype(inputs.dtype)
    x = inputs.reshape(-1, classes) if classes else inputs.reshape(inputs.shape[:-1].numel(), 0)
    x = x.to(dtype)
    spec, named = spec_of(call), None
    if call.targets.shape == inputs.shape:
        dense = call.targets.reshape(x.shape)
        t = dense.to(dtype)
        ignored = (
            torch.zeros_like(t, dtype=torch.bool) if call.ignore_index is None else dense.detach() == call.ignore_index
        )
        bad = ((t > 1) | (t < 0)) & ~ignored if arguments.are_integers(dense) else None
        if spec.is_per_row:
            ignored = ignored.any(-1, keepdim=True)  # without one of its probabilities a row has no cross entropy
            bad = None if bad is None else bad.any(-1, keepdim=True) & ~ignored
        kept, losses_of_kept = ~ignored, 1
        positives = kept
        x, t = torch.where(ignored, 0.0, x), torch.where(ignored, 0.0, t)
    else:
        ids = widened(call.targets.reshape(-1))
        ignored = torch.zeros_like(ids, dtype=torch.bool) if call.ignore_index is None else ids == call.ignore_index
        bad = bad_ids(ids, classes, call.ignore_index, not spec.is_per_row)
        t = _one_hot(torch.where(ignored, -1, ids), classes, dtype)
        named = t == 1
        if call.scores is not None:
            t = torch.where(named, call.scores[:, None], t)  # a score that is not read may be anything
        positives = ((ids >= 0) & (ids < classes) & ~ignored)[:, None]
        kept, losses_of_kept = ~ignored[:, None], classes
        ignored, bad = ignored[:, None], bad[:, None]
        x = torch.where(ignored, 0.0, x)  # an ignored logit contributes exactly 0, NaN and inf included
    if spec.is_per_row:
        loss = spec.formula(x, t, (call.numbers[0] if call.alpha is None else call.alpha) * t, *parameters_of(call))
    else:
        loss = _element_losses(x, t, named, call)
    if call.weight is not None:
        loss = loss * call.weight
    loss = torch.where(ignored, 0.0, loss)
    if bad is not None:
        loss = loss * torch.where(bad, torch.nan, 1.0).to(dtype)
    if reduction == "none":
        return loss.reshape(inputs.shape[:-1] if spec.is_per_row else inputs.shape).to(inputs.dtype)
    return _reduced(loss, inputs, call, reduction, kept, losses_of_kept, positives)


def _reduced(
    loss: Tensor, inputs: Tensor, call: Call, reduction: str, kept: Tensor, losses_of_kept: int, positives: Tensor
) -> Tensor:
    """The sum divided, one for each index of the batch. `kept`, `positives`: where a row or a logit counts for a
    divisor."""

    def total(t: Tensor) -> Tensor:
        return (
            t.reshape(*inputs.shape[:-1], t.shape[-1]).flatten(call.batch_dims).sum(-1) if call.batch_dims else t.sum()
        )

    if loss.numel() == 0:
        return total(loss)
    if call.divisor == factors.BY_VALUE and reduction == "mean" and not is_compiling() and is_jit_traced():
        # the divisor's value is the number of losses of the example that is traced
        return total(loss) / total(torch.ones_like(loss))
    if call.divisor == factors.BY_KEPT:
        return total(loss) / (total(kept) * losses_of_kept).clamp(min=1)
    if call.divisor == factors.BY_POSITIVES:
        return total(loss) / total(positives).clamp(min=1)
    return total(loss) / (call.numbers[2] if call.normalizer is None else call.normalizer)


def first_bad_target(targets: Tensor, classes: int, ignore_index: int | None, background: bool) -> int:
    """Flat position of the first class id out of range; -1 if there is none."""
    bad = bad_ids(widened(targets.flatten()), classes, ignore_index, background).nonzero()
    return int(bad[0]) if bad.numel() else -1


def rule_of_targets(logits: Sequence[Tensor], call: Call) -> tuple[int, int | None, bool, bool] | None:
    """What check_values() needs to know of the targets; None: they are floats or bool, of which none is bad."""
    if has_ids(logits, call):
        return classes_of(logits, call), call.ignore_index, not spec_of(call).is_per_row, False
    return (2, call.ignore_index, False, True) if arguments.are_integers(call.targets) else None  # ids of 0 and 1


def check_values(
    targets: Tensor,
    classes: int,
    ignore_index: int | None,
    background: bool,
    dense: bool,
    first_bad: Callable[..., Any] = first_bad_target,
) -> None:
    """Raises for the first bad class id, or dense integer. `first_bad` finds its flat position."""
    position = int(first_bad(targets, classes, ignore_index, background))
    if dense:
        arguments.check_dense(position, targets, ignore_index)
    else:
        arguments.check_ids(position, targets, classes, ignore_index, background)


def check_targets(logits: Sequence[Tensor], call: Call, first_bad: Callable[..., Any] = first_bad_target) -> None:
    rule = rule_of_targets(logits, call)
    if rule is not None:
        check_values(call.targets, *rule, first_bad)


def checked(logits: Sequence[Tensor], call: Call, reduction: str) -> Tensor:
    """compute(), after an error for the first bad target where values can be read for free."""
    if arguments.values_are_readable(logits[0], call.targets):
        check_targets(logits, call)
    return compute(logits, call, reduction)

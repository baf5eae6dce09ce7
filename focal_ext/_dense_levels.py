# Owns: dense targets over the levels of a pyramid: a call over rows for each level, and the divisor that they share.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_compiling

from . import _arguments as arguments
from ._levels import Levels, anchors_of, check_levels, check_overwrite, check_weight, check_words
from ._spec import LossSpec


def are_dense(targets: Any) -> bool:
    """Maps have four dimensions, class ids and scores two."""
    return isinstance(targets, (tuple, list)) and any(isinstance(t, Tensor) and t.dim() == 4 for t in targets)


def loss_over(
    spec: LossSpec, loss_of_rows: Callable[..., Tensor], levels: Levels, targets: Sequence[Any], options: dict[str, Any]
) -> Tensor:
    """The losses of the levels, added in their order. `options`: all arguments of the function over rows but the first
    two."""
    maps, classes = levels.maps, levels.classes
    check_levels(maps, classes)
    check_words(spec, options["reduction"], options["batch_dims"], options["class_dim"])
    _check_targets(maps, targets)
    if options["overwrite_inputs"] is True and torch.is_grad_enabled() and not arguments.is_traced():
        check_overwrite(maps)
    counts = anchors_of(maps, classes)
    weight = check_weight(options["weight"], (maps[0].shape[0], sum(counts)), maps[0], None)
    in_rows = (
        spec.is_per_row
        or (weight is not None and weight.shape[1] > 1)
        or not (options.get("alpha") is None or arguments.is_number(options["alpha"]))
    )
    parts = (
        [None] * len(maps)
        if weight is None
        else weight.split(counts, 1)
        if weight.shape[1] == sum(counts)
        else [weight] * len(maps)
    )
    options = {**options, **_divided(spec, levels, targets, options)}
    losses = []
    for i, (level, target, part) in enumerate(zip(maps, targets, parts)):
        if in_rows:
            inputs, own = _anchors(level, classes), _anchors(target, classes)
            options["weight"] = part if part is None or spec.is_per_row else part[..., None]
        else:  # in the order of memory; a weight of each image makes a row of it
            inputs, own = (t if level.is_contiguous() else t.permute(0, 2, 3, 1) for t in (level, target))
            inputs, own = (inputs, own) if part is None else (inputs.flatten(1), own.flatten(1))
            options["weight"] = part
        losses.append(_of_level(i, loss_of_rows, inputs, own, options))
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _check_targets(maps: Sequence[Tensor], targets: Sequence[Any]) -> None:
    if len(targets) != len(maps):
        raise ValueError(f"targets: must hold a dense map for each of the {len(maps)} levels, got {len(targets)}")
    for i, (level, target) in enumerate(zip(maps, targets)):
        if not isinstance(target, Tensor):
            raise TypeError(
                f"targets[{i}]: must be a torch.Tensor, a dense map as the other levels have, got "
                f"{type(target).__name__}"
            )
        if target.shape != level.shape:
            raise ValueError(
                f"targets[{i}]: dense maps must have the shape of levels[{i}], {tuple(level.shape)}, got "
                f"{tuple(target.shape)}"
            )
        if target.dtype != targets[0].dtype:
            raise TypeError(f"targets: all levels must have one dtype, got {targets[0].dtype} and {target.dtype}")


def _anchors(level: Tensor, classes: int) -> Tensor:
    """[B, anchors, classes], of planes a copy."""
    images, channels, height, width = level.shape
    split: Tensor = level.unflatten(1, (channels // classes, classes))
    return split.permute(0, 3, 4, 1, 2).reshape(images, height * width * (channels // classes), classes)


def _divided(spec: LossSpec, levels: Levels, targets: Sequence[Tensor], options: dict[str, Any]) -> dict[str, Any]:
    """Reduction and normalizer of a level: what is counted is counted over all."""
    if options["reduction"] != "mean" or options["normalizer"] is not None:
        return {}  # or the error is the level's
    batch, ignore_index = options["batch_dims"], arguments.check_ignore_index(options["ignore_index"])
    units = [t.shape[batch:].numel() // (levels.classes if spec.is_per_row else 1) for t in targets]
    if not arguments.ignores_some(targets[0], ignore_index):
        return {"reduction": "sum", "normalizer": float(max(sum(units), 1))}
    count: Any = 0
    for target in targets:
        kept: Tensor = target.detach() != ignore_index  # type: ignore[assignment]
        kept = _anchors(kept, levels.classes).all(-1) if spec.is_per_row else kept
        count = count + kept.flatten(batch).sum(-1)
    return {"reduction": "sum", "normalizer": count.clamp(min=1).to(arguments.accumulation_dtype(levels.maps[0].dtype))}


def _of_level(
    i: int, loss_of_rows: Callable[..., Tensor], inputs: Tensor, targets: Tensor, options: dict[str, Any]
) -> Tensor:
    if is_compiling():
        return loss_of_rows(inputs, targets, **options)
    try:
        return loss_of_rows(inputs, targets, **options)
    except ValueError as error:
        if not str(error).startswith("targets: dense integers"):
            raise
        raise ValueError(f"targets[{i}]{str(error).removeprefix('targets')}") from None

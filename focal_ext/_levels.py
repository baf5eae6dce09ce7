# Owns: what tensors of a call over the levels of a pyramid may be, and the form in which the ops take them.
# Must not know: formulas, autograd, the native library, any one loss.
from __future__ import annotations

from collections.abc import Mapping, Sequence, ValuesView
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import _arguments as arguments
from . import _factors as factors
from ._arguments import Alpha
from ._options import Options
from ._rows import Bound, bind_dense
from ._spec import FUNCTIONS, LossSpec


Maps = Sequence[Tensor] | Mapping[Any, Tensor]  # of the levels; a dict as an FPN returns it


class Levels(NamedTuple):
    """Logits [B, anchors * classes, H, W] of the levels of a pyramid, where a function over rows has its inputs."""

    maps: Sequence[Tensor]
    classes: int
    # anchors of an image in each level, where maps[0] only shows images, dtype and device
    counts: Sequence[int] | None = None
    # Whether they are the inputs [N, classes, *spatial] of a function with class_dim. Then the unreduced loss is one
    # map, weight may be by class, and a softmax loss may have dense targets.
    are_inputs: bool = False


def check_classes(num_classes: Any) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: must be an integer, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes: must be at least 1, got {num_classes}")


def in_order(maps: Any) -> Any:
    """The maps of a dict or of its values, as an FPN returns them; else what was given."""
    if isinstance(maps, Mapping):
        return list(maps.values())
    return list(maps) if isinstance(maps, ValuesView) else maps


def in_the_order_of(levels: Any, targets: Any) -> Any:
    """The targets of each level; of a dict those under the names that the levels have."""
    if not isinstance(targets, Mapping):
        return in_order(targets)
    names = list(levels) if isinstance(levels, Mapping) else None
    if names is None or set(names) != set(targets):
        raise ValueError(
            f"targets: a dict must have the keys of levels, {'which are no dict' if names is None else names}, got "
            f"{list(targets)}; give a list in the order of the levels instead"
        )
    return [targets[name] for name in names]


def has_kernels_for_dtype(level: Tensor) -> bool:
    """Levels in float64 are read by the CPU's kernels alone."""
    return level.is_cpu or level.dtype is not torch.float64


def check_words(spec: LossSpec, reduction: str, batch_dims: Any, class_dim: Any = -1) -> None:
    """What the function over rows has and a pyramid has not."""
    if class_dim != -1:
        raise ValueError(
            f"class_dim: levels have their classes in dimension 1, got class_dim={class_dim!r}; leave it out"
        )
    if reduction == "none":
        raise ValueError(
            "reduction: must be 'sum' or 'mean' for a pyramid, got 'none'; for 'none' flatten the levels and call "
            f"focal_ext.{FUNCTIONS[spec.number].__name__}"
        )
    if batch_dims not in (0, 1):
        raise ValueError(
            "batch_dims: must be 0 or 1 for a pyramid, whose images are the one dimension before the classes, got "
            f"{batch_dims}"
        )


def check_maps(name: str, maps: Any, channels: str) -> None:
    """A list with a map [B, channels, H, W] for each level, alike in all but height and width."""
    if isinstance(maps, Tensor) or not isinstance(maps, Sequence):
        way_out = f"use [{name}]" if isinstance(maps, Tensor) else f"use list({name})"
        raise TypeError(
            f"{name}: must be a list of tensors, one for each level, or a dict of them, got {type(maps).__name__}; "
            f"{way_out}"
        )
    if not maps:
        raise ValueError(f"{name}: must hold at least one level, got an empty list")
    for i, level in enumerate(maps):
        arguments.check_inputs(level, f"{name}[{i}]")
        first = maps[0]
        if level.dim() != 4 or level.shape[1] == 0:
            raise ValueError(f"{name}[{i}]: must have shape [B, {channels}, H, W], got {tuple(level.shape)}")
        if level.shape[:2] != first.shape[:2]:
            raise ValueError(
                f"{name}[{i}]: must have the images and channels of {name}[0], {tuple(first.shape[:2])}, got "
                f"{tuple(level.shape[:2])}"
            )
        if level.dtype != first.dtype or level.device != first.device:
            raise ValueError(
                f"{name}[{i}]: must be {first.dtype} on {first.device} as {name}[0] is, got {level.dtype} on "
                f"{level.device}"
            )


def check_levels(levels: Sequence[Tensor], num_classes: int) -> None:
    check_classes(num_classes)
    check_maps("levels", levels, f"anchors * {num_classes}")
    if levels[0].shape[1] % num_classes:
        raise ValueError(f"levels[0]: must have shape [B, anchors * {num_classes}, H, W], got {tuple(levels[0].shape)}")


def anchors_of(levels: Sequence[Tensor], num_classes: int) -> list[int]:
    """Number of anchors of an image in each level."""
    return [level.shape[1] // num_classes * level.shape[2] * level.shape[3] for level in levels]


def is_native_layout(level: Tensor) -> bool:
    return level.is_contiguous() or level.is_contiguous(memory_format=torch.channels_last)


def check_overwrite(levels: Sequence[Tensor], *others: Tensor | None, are_inputs: bool = False) -> None:
    for i, level in enumerate(levels):
        arguments.check_overwrite(level, *others, name="inputs" if are_inputs else f"levels[{i}]")
    in_place = [level for level in levels if arguments.is_plain(level) and is_native_layout(level) and level.numel()]
    written = sorted((level.data_ptr(), level.data_ptr() + level.numel() * level.element_size()) for level in in_place)
    if any(end > start for (_, end), (start, _) in zip(written, written[1:])):
        raise ValueError("overwrite_inputs: two of levels share memory; clone one of them")


def bind(
    options: Options, levels: Levels, targets: Any, weight: Tensor | None, alpha: Alpha, normalizer: Tensor | None
) -> Bound:
    maps, classes, counts, are_inputs = levels
    if counts is None:
        check_levels(maps, classes)
        counts = anchors_of(maps, classes)
    like, spec, batch_dims = maps[0], options.spec, options.batch_dims
    if not are_inputs:
        check_words(spec, options.reduction, batch_dims)
    divisor, numbers, ignore_index, scores = options.divisor, options.numbers, options.ignore_index, None
    if are_inputs and isinstance(targets, Tensor) and targets.shape == like.shape:
        arguments.is_dense(like, targets)
        divisor, numbers, targets, ignore_index = bind_dense(options, like, targets, (like.shape[0], *counts))
        ids = targets.contiguous()
    elif spec.needs_scores or _is_pair(targets):
        ids, scores = _take_apart(targets, like, counts)
    else:
        ids = _joined(targets, like, counts)
    class_alpha = None if alpha is None else factors.check_class_alpha(alpha, like, classes, spec.most_alpha)
    divisor, numbers, normalizer = factors.divisor_of(divisor, numbers, normalizer, like, batch_dims)
    weight = check_weight(weight, (like.shape[0], sum(counts)), like, classes if are_inputs else None)
    if (
        options.overwrite_inputs
        and torch.is_grad_enabled()
        and not (arguments.is_traced() or torch.is_inference_mode_enabled())
    ):
        check_overwrite(maps, ids, weight, scores, are_inputs=are_inputs)
    logits = tuple(maps)
    return (
        logits,
        (ids, scores, weight, class_alpha, normalizer),
        numbers,
        ignore_index,
        divisor,
        arguments.are_plain((*logits, ids, scores, weight, class_alpha, normalizer)),
    )


bind_quietly = arguments.quiet_under_jit_trace(bind)


def _is_pair(targets: Any) -> bool:
    """Whether two of something are ids and scores, and not the ids of two levels: by the dtype."""
    if not isinstance(targets, (tuple, list)) or len(targets) != 2:
        return False
    second = targets[1]
    first = second[0] if isinstance(second, (tuple, list)) and second else second
    return isinstance(second, (tuple, list)) or (isinstance(first, Tensor) and first.is_floating_point())


def _take_apart(targets: Any, like: Tensor, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
    """A pair (ids, scores), each one tensor or one a level."""
    if not isinstance(targets, (tuple, list)) or len(targets) != 2:
        raise TypeError(
            "targets: must be a pair (ids, scores), each a tensor or a list of one for each level, got "
            f"{type(targets).__name__}"
        )
    ids, scores = _joined(targets[0], like, counts), _joined(targets[1], like, counts, "scores")
    return ids, arguments.in_dtype(scores, arguments.accumulation_dtype(like.dtype)).reshape(-1)


def _joined(targets: Any, like: Tensor, counts: Sequence[int], what: str = "class ids") -> Tensor:
    """Checked class ids, or scores, [B, anchors of all levels], contiguous."""
    images = like.shape[0]
    parts = [targets] if isinstance(targets, Tensor) else targets
    if not isinstance(parts, Sequence) or not all(isinstance(part, Tensor) for part in parts):
        raise TypeError(
            f"targets: must be a tensor of {what} or a list of them, one for each level, got {type(targets).__name__}"
        )
    wanted = [(images, sum(counts))] if isinstance(targets, Tensor) else [(images, count) for count in counts]
    if [tuple(part.shape) for part in parts] != wanted:
        raise ValueError(
            f"targets: {what} must have shape {wanted[0] if len(wanted) == 1 else wanted}, got "
            f"{[tuple(part.shape) for part in parts]}"
        )
    for part in parts:
        arguments.check_layout("targets", part)
        if what == "scores" and not part.is_floating_point():
            raise TypeError(
                f"targets: the scores of a pair (ids, scores) must be floating point, got {part.dtype}; use "
                "scores.float()"
            )
        if what != "scores" and part.dtype not in arguments.ID_DTYPES:
            raise TypeError(f"targets: class ids must be integers, got {part.dtype}; use targets.long()")
        if part.dtype != parts[0].dtype:
            raise TypeError(f"targets: all levels must have one dtype, got {parts[0].dtype} and {part.dtype}")
        if part.device != like.device:
            raise ValueError(
                f"targets: must be on the device of the levels, {like.device}, got {part.device}; use "
                f"targets.to({str(like.device)!r})"
            )
    return parts[0].contiguous() if len(parts) == 1 else torch.cat(list(parts), dim=1)


def check_weight(
    weight: Tensor | None, of_anchors: tuple[int, int], like: Tensor, classes: int | None
) -> Tensor | None:
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: must be a torch.Tensor or None, got {type(weight).__name__}")
    arguments.check_layout("weight", weight)
    if weight.is_complex() or weight.is_quantized:
        raise TypeError(f"weight: must be real numbers, got {weight.dtype}")
    if weight.device != like.device:
        raise ValueError(f"weight: must be on the device of the levels, {like.device}, got {weight.device}")
    if tuple(weight.shape) not in (of_anchors, (of_anchors[0], 1), (classes,)):
        raise ValueError(
            f"weight: must have shape {(of_anchors[0], 1)}, one factor an image, or {of_anchors}, one an anchor, got "
            f"{tuple(weight.shape)}"
        )
    return weight.to(arguments.accumulation_dtype(like.dtype)).contiguous()

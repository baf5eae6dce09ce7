# Owns: what each argument of a loss may be, and every error about it; those that multiply or divide losses are in
# _factors.py.
# Must not know: formulas, autograd, the native library, which loss takes which argument.
from __future__ import annotations

import functools
import math
import numbers
import operator
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.compiler import is_compiling

from ._symbols import SYMBOLS, holds, quoted
from ._torch_private import is_differentiated_forward, is_jit_traced, is_transformed, owner_of

Alpha = float | Sequence[float] | Tensor | None
Normalizer = float | str | Tensor | None
Targets = Tensor | tuple[Tensor, Tensor]

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STRIDED = torch.strided
DENSE_DTYPES = frozenset((*LOGIT_DTYPES, torch.bool, torch.uint8, torch.int64, torch.int32))
ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def is_traced() -> bool:
    """Whether torch.compile, torch.export, torch.jit.trace or a torch.func transform runs the call."""
    return is_compiling() or is_transformed() or is_jit_traced()


def is_watched() -> bool:
    """Whether anything runs the call that would see or ask for more than its result: what traces it, or forward-mode
    AD."""
    return is_compiling() or is_jit_traced() or is_differentiated_forward()


P = ParamSpec("P")
R = TypeVar("R")


def quiet_under_jit_trace(function: Callable[P, R]) -> Callable[P, R]:
    """Without torch.jit.trace's warning for each size that Python looks at: what is decided by sizes here holds for any
    number of rows."""

    @functools.wraps(function)
    def quiet(*args: P.args, **kwargs: P.kwargs) -> R:
        if is_compiling() or not is_jit_traced():
            return function(*args, **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
            return function(*args, **kwargs)

    return quiet


def is_fx_traced() -> bool:
    """Whether make_fx records the call, with real tensors of which it lets no value be read."""
    module = sys.modules.get("torch.fx.experimental.proxy_tensor")  # nobody traces by it who has not imported it
    return module is not None and module.get_proxy_mode() is not None


def is_nan(loss: Tensor) -> bool:
    """Whether a loss on the CPU has a NaN; a loss that make_fx records counts as having none. Every call asks, and a
    try costs nothing where nothing is raised."""
    try:
        return math.isnan(loss.item()) if not loss.dim() else bool(loss.isnan().any())  # on the CPU
    except RuntimeError:
        if is_fx_traced():
            return False
        raise


def values_are_readable(*tensors: Tensor | None) -> bool:
    """Whether looking at values is possible and free: not on a device, in a traced graph, under a transform or for a
    subclass."""
    if is_traced() or is_fx_traced():
        return False
    return all(t is None or (t.device.type == "cpu" and is_plain(t)) for t in tensors)


def is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor is memory that kernels can read: no subclass that defines operations of its own."""
    return tensor is None or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


IN_MEMORY = {Tensor, type(None)}


def are_plain(tensors: Iterable[Tensor | None]) -> bool:
    given = tuple(tensors)
    return IN_MEMORY.issuperset(map(type, given)) or all(map(is_plain, given))


def in_dtype(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """tensor.to(dtype), whose dispatch takes microseconds of a call also where it does nothing."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)


def is_distributed(tensor: object) -> bool:
    """Whether it is a DTensor; nobody has one whose module is not imported."""
    if type(tensor) is Tensor:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def check_distributed(name: str, tensor: Tensor, inputs: Tensor) -> None:
    if is_distributed(tensor) != is_distributed(inputs):
        raise TypeError(
            f"{name}: must be a {'DTensor' if is_distributed(inputs) else 'plain tensor'} as inputs is, got "
            f"{type(tensor).__name__};"
            " bring both to one form with torch.distributed.tensor.distribute_tensor() or .full_tensor()"
        )


def check_layout(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(
            f"{name}: must be a dense strided tensor, got {'a nested tensor' if tensor.is_nested else tensor.layout}; "
            f"use {name}.to_dense()"
        )
    check_allocated(name, tensor)


def check_allocated(name: str, tensor: Tensor) -> None:
    """Whether the storage holds every element: torch lets it be freed or shortened under its tensors, and a read of
    those ends the process."""
    if (type(tensor) is not Tensor and not is_plain(tensor)) or is_traced():
        return
    try:
        bytes_held = tensor.untyped_storage().nbytes()
    except NotImplementedError:  # what a finished torch.func transform left is no memory itself, and torch 2.10 says so
        return
    if tensor.is_contiguous() and tensor.storage_offset() * tensor.itemsize + tensor.nbytes <= bytes_held:
        return
    numel = tensor.numel()
    reach = (
        numel
        if numel == 0 or tensor.is_contiguous()
        else 1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride()))
    )
    if (tensor.storage_offset() + reach) * tensor.element_size() > bytes_held and numel:
        raise RuntimeError(
            f"{name}: its data is not allocated; a storage of {bytes_held} bytes does not hold its {tensor.numel()} "
            "elements"
            " (was it freed by untyped_storage().resize_()?)"
        )


def is_in_memory(tensor: Tensor) -> bool:
    """Whether it is contiguous memory and of no subclass: what nearly every call brings, of which nothing else need be
    asked in Python."""
    return type(tensor) is Tensor and tensor.layout is STRIDED and not tensor.is_nested and tensor.is_contiguous()


def check_inputs(inputs: Tensor, name: str = "inputs") -> None:
    if is_in_memory(inputs) and inputs.dtype in LOGIT_DTYPES and inputs.dim():
        return
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{name}: must be a torch.Tensor, got {type(inputs).__name__}")
    check_layout(name, inputs)
    if inputs.dtype not in LOGIT_DTYPES:
        raise TypeError(
            f"{name}: must be float32, bfloat16, float16 or float64, got {inputs.dtype}; convert with {name}.float()"
        )
    if inputs.dim() == 0:
        raise ValueError(f"{name}: logits need shape (..., classes), got a 0-d tensor; use {name}[None]")


def is_dense(inputs: Tensor, targets: Targets) -> bool:
    """Reads the kind of targets from their rank, never from their values."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: must be a torch.Tensor, got {type(targets).__name__}")
    check_layout("targets", targets)
    check_distributed("targets", targets, inputs)
    if targets.device != inputs.device:
        raise ValueError(
            f"targets: must be on the device of inputs, {inputs.device}, got {targets.device}; use "
            "targets.to(inputs.device)"
        )
    if targets.shape == inputs.shape:
        if targets.is_complex() or targets.is_quantized:
            raise TypeError(f"targets: dense targets must be float, bool or 0/1 integers, got {targets.dtype}")
        return True
    if targets.shape == inputs.shape[:-1]:
        if targets.dtype not in ID_DTYPES:
            way_out = "targets[..., None], dense labels of the one class" if inputs.shape[-1] == 1 else "targets.long()"
            raise TypeError(
                f"targets: of shape inputs.shape[:-1] they are class ids and must be integers, got {targets.dtype}; "
                f"use {way_out}"
            )
        return False
    raise ValueError(
        f"targets: shape must be {tuple(inputs.shape[:-1])} for class ids or {tuple(inputs.shape)} for dense targets,"
        f" got {tuple(targets.shape)}{_class_axis_hint(inputs, targets)}"
    )


def _class_axis_hint(inputs: Tensor, ids: Tensor) -> str:
    """A hint for ids that fit logits with their classes in dimension 1, as torch's cross_entropy has them. Logits
    whose dimensions are all equal show nothing."""
    fits = inputs.dim() > 2 and ids.shape == inputs.shape[:1] + inputs.shape[2:]
    return "; the classes are taken from the last dimension: pass class_dim=1" if fits else ""


def check_has_scores(inputs: Tensor, targets: Tensor) -> None:
    if targets.shape == inputs.shape[:-1] and targets.shape != inputs.shape:
        raise ValueError(
            "targets: class ids need a score each, got ids alone; pass the pair (ids, scores), or dense scores of "
            "shape inputs.shape"
        )


def check_scored(inputs: Tensor, targets: Any) -> tuple[Tensor, Tensor]:
    """Takes a pair (class ids, scores) apart. Returns the ids, and the scores as [rows]."""
    if not isinstance(targets, (tuple, list)) or len(targets) != 2 or not all(isinstance(t, Tensor) for t in targets):
        raise TypeError(
            f"targets: must be a torch.Tensor, or a pair (ids, scores) of them, got {type(targets).__name__}"
        )
    ids, scores = targets
    if ids.shape != inputs.shape[:-1] or scores.shape != ids.shape:
        raise ValueError(
            f"targets: of a pair (ids, scores) both must have shape {tuple(inputs.shape[:-1])}, got "
            f"{tuple(ids.shape)} and {tuple(scores.shape)}"
            f"{_class_axis_hint(inputs, ids)}"
        )
    check_layout("targets", scores)
    check_distributed("targets", scores, inputs)
    if not scores.is_floating_point():
        raise TypeError(
            f"targets: the scores of a pair (ids, scores) must be floating point, got {scores.dtype}; use "
            "scores.float()"
        )
    if scores.device != inputs.device:
        raise ValueError(f"targets: scores must be on the device of inputs, {inputs.device}, got {scores.device}")
    scores = in_dtype(scores, accumulation_dtype(inputs.dtype))
    return ids, (scores if scores.dim() == 1 else scores.reshape(-1)).contiguous()


def check_ids(first_bad: int, targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> None:
    """Raises for the class id at flat position first_bad unless that is -1."""
    if first_bad < 0:
        return
    skip = (
        "" if ignore_index is None else f"ignore_index={ignore_index} to skip {'an anchor' if background else 'a row'}"
    )
    bad = targets.flatten()[first_bad].item()  # on the CPU; int() refuses uint64 beyond int64
    names = f"{classes} or -1" if classes != 1 else "-1" if ignore_index != -1 else "-1, with another ignore_index,"
    if background and classes == 1 == bad:
        raise ValueError(
            f"targets: class id 1 at anchor {first_bad} is ambiguous with one class, whose id is 0; use {names} for "
            "background;"
            " labels of 0 and 1 are dense targets, targets[..., None]"
        )
    if background:
        hint = f"; use {names} for background{skip and ', ' + skip}"
    else:
        hint = f"; softmax has no background, make it a class of its own{skip and ' or use ' + skip}"
    where = f"{'anchor' if background else 'row'} {first_bad}"
    raise ValueError(f"targets: class id {bad} at {where} is outside [0, {classes}){hint}")


def are_integers(dense: Tensor) -> bool:
    """Whether dense targets are integers, of which others than 0, 1 and the ignored one are bad."""
    return not (dense.is_floating_point() or dense.dtype is torch.bool)


def ignores_some(targets: Tensor, ignore_index: int | None) -> bool:
    """Whether the dtype of dense targets holds the number that is ignored."""
    if ignore_index is None or targets.is_floating_point():
        return ignore_index is not None
    if targets.dtype is torch.bool:
        return ignore_index in (0, 1)
    range_of = torch.iinfo(targets.dtype)
    return range_of.min <= ignore_index <= range_of.max


IGNORED_BYTE, BAD_BYTE = 255, 254


def as_stored_integers(targets: Tensor, ignore_index: int | None) -> tuple[Tensor, int | None]:
    """Dense integers as kernels read them, with the one that is ignored: on the CPU as they are, on devices bytes."""
    if targets.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch compares none of them
        targets = targets.to(torch.int64)  # beyond int64 negative, and bad too
    if targets.device.type == "cpu" or targets.dtype is torch.uint8:
        return targets, ignore_index
    return as_bytes(targets, ignore_index)


def as_bytes(targets: Tensor, ignore_index: int | None) -> tuple[Tensor, int | None]:
    """Dense integers as bytes: 0 and 1 as they are, one for all that are ignored, one for all that are bad."""
    ones = targets == 1
    codes = torch.where(ones | (targets == 0), ones.to(torch.uint8), BAD_BYTE)
    if ignore_index is not None:
        codes = torch.where(targets == ignore_index, IGNORED_BYTE, codes)
    return codes, None if ignore_index is None else IGNORED_BYTE


def check_dense(first_bad: int, targets: Tensor, ignore_index: int | None) -> None:
    """Raises for the dense integer at flat position first_bad unless that is -1."""
    if first_bad < 0:
        return
    value = targets.flatten()[first_bad].item()  # on the CPU
    at = tuple(int(i) for i in torch.unravel_index(torch.tensor(first_bad), targets.shape))
    raise ValueError(
        f"targets: dense integers must be 0 or 1"
        f"{'' if ignore_index is None else f', or ignore_index={ignore_index}'}, got {value} at {at};"
        f" use ignore_index={value} to skip it, or float targets for probabilities"
    )


NUMBERS = (float, int, numbers.Real, *SYMBOLS)


def is_number(value: object) -> bool:
    """A Python or NumPy number, or a symbol of a graph for one."""
    return isinstance(value, NUMBERS) and not isinstance(value, bool)


def as_float(value: Any) -> float:
    if isinstance(value, SYMBOLS):
        return torch.sym_float(value)  # type: ignore[no-any-return]
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.inf


def check_exponent(
    name: str, value: float, least: int = 0, hint: str = "0 is cross entropy, 2 the paper's choice"
) -> float:
    if not is_number(value):
        raise TypeError(f"{name}: must be a number, got {type(value).__name__}; a learnable {name} is not supported")
    number = as_float(value)
    if not holds(number >= least, number < math.inf):
        raise ValueError(f"{name}: must be finite and >= {least}, got {quoted(value)}; {hint}")
    return number


def check_flag(name: str, value: object) -> float:
    """A bool as the ops take it, or what they took."""
    if not isinstance(value, bool) and not (isinstance(value, float) and value in (0.0, 1.0)):
        raise TypeError(f"{name}: must be a bool, got {type(value).__name__}")
    return float(value)


def check_fraction(name: str, value: object, below_one: bool = False) -> float:
    """A number in [0, 1], or in [0, 1)."""
    if not is_number(value):
        raise TypeError(f"{name}: must be a number, got {type(value).__name__}")
    number = as_float(value)
    if not holds(number >= 0, number < 1 if below_one else number <= 1):
        raise ValueError(f"{name}: must be in [0, 1{')' if below_one else ']'}, got {quoted(value)}; 0 switches it off")
    return number + 0.0  # -0.0 is 0.0, to which it is equal


def check_ignore_index(ignore_index: int | None) -> int | None:
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, numbers.Integral)):
        raise TypeError(f"ignore_index: must be an integer or None, got {type(ignore_index).__name__}")
    ignore_index = operator.index(ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: must fit int64, got {ignore_index}; None skips no class id")
    return ignore_index


def check_batch_dims(batch_dims: object, reduction: str) -> None:
    if isinstance(batch_dims, bool) or not isinstance(batch_dims, int):
        raise TypeError(f"batch_dims: must be an integer, got {type(batch_dims).__name__}")
    if batch_dims and reduction == "none":
        raise ValueError(
            f"batch_dims: goes with reduction='sum' or 'mean', got reduction='none' and {batch_dims}; unreduced "
            "losses have every dimension"
        )


def check_batch_end(batch_dims: int, most: int, shape: Sequence[int]) -> None:
    """`most`: the dimension of the classes, before which those of a batch end."""
    if not 0 <= batch_dims <= most:
        raise ValueError(
            f"batch_dims: must be in [0, {most}] for inputs of shape {tuple(shape)}, whose classes are dimension "
            f"{most}, got {batch_dims}"
        )


def is_overlapping(inputs: Tensor) -> bool:
    """Whether two elements may share memory: an expanded or otherwise overlapping view."""
    if inputs.numel() == 0:
        return False
    reach = 0
    for stride, size in sorted((s, n) for s, n in zip(inputs.stride(), inputs.shape) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (size - 1)
    return False


def check_overwrite(inputs: Tensor, *others: Tensor | None, name: str = "inputs") -> None:
    if inputs.is_inference():
        raise ValueError(
            "overwrite_inputs: an inference tensor cannot take a gradient; compute the logits outside "
            "torch.inference_mode()"
        )
    owner = owner_of(inputs)
    if inputs.requires_grad and owner.requires_grad and owner.is_leaf:
        raise ValueError(
            f"overwrite_inputs: {name} is a leaf that requires grad, or a view of one; its values must survive "
            "backward; pass logits that a layer computed"
        )
    if is_overlapping(inputs):
        raise ValueError(
            f"overwrite_inputs: elements of {name} share memory (strides {inputs.stride()}); use {name}.contiguous()"
        )
    if inputs.is_neg():
        raise ValueError(f"overwrite_inputs: {name} is a view that negates on reading; use {name}.resolve_neg()")
    for other in others:
        if (
            other is None
            or not (is_plain(inputs) and is_plain(other))
            or inputs.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
        ):
            continue
        if inputs.numel() and (other.data_ptr(), other.shape, other.stride()) != (
            inputs.data_ptr(),
            inputs.shape,
            inputs.stride(),
        ):
            raise ValueError(
                f"overwrite_inputs: targets or weight share memory with {name} at another place; clone them"
            )

# Owns: what each argument of a loss may be, and every error about it.
# Must not know: formulas, autograd, the native library, which loss takes which argument.
from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Sequence

import torch
from torch import Tensor

Alpha = float | Sequence[float] | Tensor | None
Normalizer = float | str | Tensor | None
Targets = Tensor | tuple[Tensor, Tensor]

LOGIT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ID_DTYPES = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)

# What the reduced loss is divided by; the numbers are those of csrc/problem.h.
BY_VALUE, BY_TENSOR, BY_KEPT, BY_POSITIVES = range(4)


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype is torch.float64 else torch.float32


def is_traced() -> bool:
    """Whether torch.compile, torch.export or a torch.func transform runs the call."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def values_are_readable(*tensors: Tensor | None) -> bool:
    """Whether looking at values is possible and free: not on a device, in a compiled graph, under a transform or for a subclass."""
    if is_traced():
        return False
    return all(t is None or (t.device.type == "cpu" and is_plain(t)) for t in tensors)


def is_plain(tensor: Tensor | None) -> bool:
    """Whether a tensor is memory that kernels can read: no subclass that defines operations of its own."""
    return tensor is None or type(tensor).__torch_dispatch__ is Tensor.__torch_dispatch__


def check_layout(name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.is_nested:
        raise TypeError(f"{name}: must be a dense strided tensor, got {'a nested tensor' if tensor.is_nested else tensor.layout}; use {name}.to_dense()")


def check_inputs(inputs: Tensor, name: str = "inputs") -> None:
    if not isinstance(inputs, Tensor):
        raise TypeError(f"{name}: must be a torch.Tensor, got {type(inputs).__name__}")
    check_layout(name, inputs)
    if inputs.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name}: must be float32, bfloat16, float16 or float64, got {inputs.dtype}; convert with {name}.float()")
    if inputs.dim() == 0:
        raise ValueError(f"{name}: logits need shape (..., classes), got a 0-d tensor; use {name}[None]")


def is_dense(inputs: Tensor, targets: Targets) -> bool:
    """Reads the kind of targets from their rank, never from their values."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets: must be a torch.Tensor, got {type(targets).__name__}")
    check_layout("targets", targets)
    if targets.device != inputs.device:
        raise ValueError(f"targets: must be on the device of inputs, {inputs.device}, got {targets.device}; use targets.to(inputs.device)")
    if targets.shape == inputs.shape:
        if targets.is_complex() or targets.is_quantized:
            raise TypeError(f"targets: dense targets must be float, bool or 0/1 integers, got {targets.dtype}")
        return True
    if targets.shape == inputs.shape[:-1]:
        if targets.dtype not in ID_DTYPES:
            raise TypeError(
                f"targets: of shape inputs.shape[:-1] they are class ids and must be integers, got {targets.dtype}; use targets.long()"
            )
        return False
    raise ValueError(
        f"targets: shape must be {tuple(inputs.shape[:-1])} for class ids or {tuple(inputs.shape)} for dense targets,"
        f" got {tuple(targets.shape)}"
    )


def check_scored(inputs: Tensor, targets: Targets) -> tuple[Tensor, Tensor | None]:
    """Takes a pair (class ids, scores) apart; dense targets pass. Returns the targets, and the scores as [rows]."""
    if isinstance(targets, Tensor):
        if targets.shape == inputs.shape[:-1] and targets.shape != inputs.shape:
            raise ValueError("targets: class ids need a score each, got ids alone; pass the pair (ids, scores), or dense scores of shape inputs.shape")
        return targets, None
    if not isinstance(targets, (tuple, list)) or len(targets) != 2 or not all(isinstance(t, Tensor) for t in targets):
        raise TypeError(f"targets: must be a pair (ids, scores) of tensors or a dense tensor, got {type(targets).__name__}")
    ids, scores = targets
    if ids.shape != inputs.shape[:-1] or scores.shape != ids.shape:
        raise ValueError(
            f"targets: of a pair (ids, scores) both must have shape {tuple(inputs.shape[:-1])}, got {tuple(ids.shape)} and {tuple(scores.shape)}"
        )
    check_layout("targets", scores)
    if not scores.is_floating_point():
        raise TypeError(f"targets: the scores of a pair (ids, scores) must be floating point, got {scores.dtype}; use scores.float()")
    if scores.device != inputs.device:
        raise ValueError(f"targets: scores must be on the device of inputs, {inputs.device}, got {scores.device}")
    scores = scores.to(accumulation_dtype(inputs.dtype))
    return ids, (scores if scores.dim() == 1 else scores.reshape(-1)).contiguous()


def check_ids(first_bad: int, targets: Tensor, classes: int, ignore_index: int | None, background: bool = True) -> None:
    """Raises for the class id at flat position first_bad unless that is -1."""
    if first_bad < 0:
        return
    skip = "" if ignore_index is None else f"ignore_index={ignore_index} to skip {'an anchor' if background else 'a row'}"
    if background:
        hint = f"; use {classes} or -1 for background{skip and ', ' + skip}"
    else:
        hint = f"; softmax has no background, make it a class of its own{skip and ' or use ' + skip}"
    where = f"{'anchor' if background else 'row'} {first_bad}"
    raise ValueError(f"targets: class id {targets.flatten()[first_bad].numpy()} at {where} is outside [0, {classes}){hint}")


def is_number(value: object) -> bool:
    """A Python or NumPy number."""
    return isinstance(value, (int, float, numbers.Real)) and not isinstance(value, bool)


def as_float(value: numbers.Real | float) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond float64
        return math.inf


def check_exponent(name: str, value: float, least: int = 0, hint: str = "0 is cross entropy, 2 the paper's choice") -> float:
    if not is_number(value):
        raise TypeError(f"{name}: must be a number, got {type(value).__name__}; a learnable {name} is not supported")
    if not least <= as_float(value) < math.inf:
        raise ValueError(f"{name}: must be finite and >= {least}, got {value}; {hint}")
    return float(value)


def check_fraction(name: str, value: object, below_one: bool = False) -> float:
    """A number in [0, 1], or in [0, 1)."""
    if not is_number(value):
        raise TypeError(f"{name}: must be a number, got {type(value).__name__}")
    if not 0 <= as_float(value) <= 1 or (below_one and value == 1):  # type: ignore[arg-type]
        raise ValueError(f"{name}: must be in [0, 1{')' if below_one else ']'}, got {value}; 0 switches it off")
    return float(value)  # type: ignore[arg-type]


def check_alpha(alpha: Alpha, inputs: Tensor, most: float = 1.0) -> tuple[float, float, Tensor | None]:
    """Returns the factors of positives and negatives, and the tensor of per-class alphas if there is one."""
    rule = "in [0, 1]" if most == 1 else "finite and >= 0"
    if alpha is None or (is_number(alpha) and alpha == -1):
        return 1.0, 1.0, None
    if is_number(alpha):
        if not 0 <= as_float(alpha) <= most or as_float(alpha) == math.inf:  # type: ignore[arg-type]
            raise ValueError(f"alpha: must be {rule}, or None or -1 to switch it off, got {alpha}")
        return float(alpha), 1.0 - float(alpha), None  # type: ignore[arg-type]
    classes, dtype = inputs.shape[-1], accumulation_dtype(inputs.dtype)
    if not isinstance(alpha, Tensor):
        alpha = alpha.tolist() if hasattr(alpha, "tolist") else alpha
        if isinstance(alpha, (str, bytes, bool)) or not isinstance(alpha, Sequence) or not all(map(is_number, alpha)):
            raise TypeError(f"alpha: must be None, a float, or a tensor or sequence of {classes} floats, got {type(alpha).__name__}")
        alpha = torch.tensor([float(a) for a in alpha], dtype=dtype, device=inputs.device)
    check_layout("alpha", alpha)
    if alpha.is_complex() or alpha.is_quantized or alpha.dtype is torch.bool:
        raise TypeError(f"alpha: must be real numbers, got {alpha.dtype}")
    if alpha.shape != (classes,):
        raise ValueError(f"alpha: a tensor or sequence must hold one value per class, shape ({classes},), got {tuple(alpha.shape)}")
    if alpha.device != inputs.device:
        raise ValueError(f"alpha: must be on the device of inputs, {inputs.device}, got {alpha.device}")
    if values_are_readable(alpha) and not bool(((alpha >= 0) & (alpha <= most) & (alpha < math.inf)).all()):
        raise ValueError(f"alpha: every value must be {rule}, got {alpha.tolist()}")
    return 1.0, 1.0, alpha.to(dtype).contiguous()


def check_weight(weight: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Brings a weight that broadcasts to inputs to [rows or 1, classes or 1], copying only where its layout is neither."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: must be a torch.Tensor or None, got {type(weight).__name__}")
    check_layout("weight", weight)
    if weight.is_complex() or weight.is_quantized:
        raise TypeError(f"weight: must be real numbers, got {weight.dtype}")
    if weight.device != inputs.device:
        raise ValueError(f"weight: must be on the device of inputs, {inputs.device}, got {weight.device}")
    shape = inputs.shape
    if weight.dim() > len(shape) or any(w not in (1, s) for w, s in zip(reversed(weight.shape), reversed(shape))):
        column = "weight[:, None]" if len(shape) == 2 else "weight[..., None]"
        hint = f"; one value per row must be a column, use {column}" if weight.shape == shape[:-1] else ""
        raise ValueError(f"weight: must broadcast to inputs of shape {tuple(shape)}, got {tuple(weight.shape)}{hint}")
    weight = weight.to(accumulation_dtype(inputs.dtype))
    last = weight.shape[-1] if weight.dim() else 1
    if weight.numel() == last:
        return weight.reshape(1, last).contiguous()
    return weight.expand(*shape[:-1], last).reshape(math.prod(shape[:-1]), last).contiguous()


def check_row_weight(weight: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Brings a weight that broadcasts to inputs.shape[:-1] to [rows or 1, 1]."""
    if isinstance(weight, Tensor):
        rows = inputs.shape[:-1]
        if weight.dim() > len(rows) or any(w not in (1, s) for w, s in zip(reversed(weight.shape), reversed(rows))):
            hint = "; a column is weight.squeeze(-1)" if weight.shape == (*rows, 1) else "; a factor for each class is alpha" if weight.shape == inputs.shape[-1:] else ""
            raise ValueError(f"weight: must broadcast to the rows of inputs, {tuple(rows)}, got {tuple(weight.shape)}{hint}")
        check_layout("weight", weight)
        weight = weight.unsqueeze(-1)
    return check_weight(weight, inputs)


def check_normalizer(normalizer: Normalizer, reduction: str, inputs: Tensor, dense: bool, per_row: bool = False) -> tuple[int, float, Tensor | None]:
    """Returns the divisor's kind, its value and its tensor; the mean is that of all losses that are not ignored, one a row or one a logit."""
    if not isinstance(reduction, str) or reduction not in ("none", "mean", "sum"):
        raise ValueError(f"reduction: must be 'none', 'mean' or 'sum', got {reduction!r}")
    if normalizer is None:
        if reduction != "mean":
            return BY_VALUE, 1.0, None
        if dense:
            return BY_VALUE, float(max(math.prod(inputs.shape[:-1]) if per_row else inputs.numel(), 1)), None
        return BY_POSITIVES if per_row else BY_KEPT, 1.0, None
    if reduction != "sum":
        raise ValueError(f"normalizer: goes with reduction='sum', got reduction={reduction!r}")
    if isinstance(normalizer, str):
        if normalizer != "positives":
            raise ValueError(f"normalizer: must be a float, a 0-d tensor or 'positives', got {normalizer!r}")
        if dense:
            raise ValueError("normalizer: 'positives' counts class ids, got dense targets; pass a float or a 0-d tensor")
        return BY_POSITIVES, 1.0, None
    if isinstance(normalizer, Tensor):
        check_layout("normalizer", normalizer)
        if normalizer.dim() != 0:
            raise ValueError(f"normalizer: a tensor must be 0-d, got shape {tuple(normalizer.shape)}; use normalizer.sum() or .squeeze()")
        if normalizer.is_complex() or normalizer.is_quantized or normalizer.dtype is torch.bool:
            raise TypeError(f"normalizer: must be a real number, got {normalizer.dtype}")
        if normalizer.device != inputs.device:
            raise ValueError(f"normalizer: must be on the device of inputs, {inputs.device}, got {normalizer.device}")
        return BY_TENSOR, 1.0, normalizer.to(accumulation_dtype(inputs.dtype))
    if not is_number(normalizer):
        raise TypeError(f"normalizer: must be a float, a 0-d tensor or 'positives', got {type(normalizer).__name__}")
    if not 0 < as_float(normalizer) < math.inf:
        raise ValueError(f"normalizer: must be finite and > 0, got {normalizer}; clamp a count of positives with max(n, 1)")
    return BY_VALUE, float(normalizer), None


def check_ignore_index(ignore_index: int | None) -> int | None:
    if ignore_index is None:
        return None
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, numbers.Integral)):
        raise TypeError(f"ignore_index: must be an integer or None, got {type(ignore_index).__name__}")
    ignore_index = operator.index(ignore_index)
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"ignore_index: must fit int64, got {ignore_index}; None skips no class id")
    return ignore_index


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
        raise ValueError("overwrite_inputs: an inference tensor cannot take a gradient; compute the logits outside torch.inference_mode()")
    owner = inputs._base if inputs._is_view() and inputs._base is not None else inputs
    if inputs.requires_grad and owner.requires_grad and owner.is_leaf:
        raise ValueError(f"overwrite_inputs: {name} is a leaf that requires grad, or a view of one; its values must survive backward; pass logits that a layer computed")
    if is_overlapping(inputs):
        raise ValueError(f"overwrite_inputs: elements of {name} share memory (strides {inputs.stride()}); use {name}.contiguous()")
    if inputs.is_neg():
        raise ValueError(f"overwrite_inputs: {name} is a view that negates on reading; use {name}.resolve_neg()")
    for other in others:
        if other is None or not (is_plain(inputs) and is_plain(other)) or inputs.untyped_storage().data_ptr() != other.untyped_storage().data_ptr():
            continue
        if inputs.numel() and (other.data_ptr(), other.shape, other.stride()) != (inputs.data_ptr(), inputs.shape, inputs.stride()):
            raise ValueError(f"overwrite_inputs: targets or weight share memory with {name} at another place; clone them")

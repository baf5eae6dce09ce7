# Owns: every op called with every kind of wrong tensor and number, in place of each argument; run by test_hostile.py in
# a process of its own, which a read or write beside a tensor ends: the tensors touch pages that may not be touched.
# Writes one line per call.
# Must not know: which calls are wrong.
from __future__ import annotations

import ctypes
import json
import math
import mmap
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import focal_ext  # noqa: F401  loads the library
import torch
from focal_ext._native import IN_PLACE_OPS, ops
from torch import Tensor

ROWS, CLASSES = 6, 4
PAGE, PROT_NONE = mmap.PAGESIZE, 0
libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(t: Tensor) -> Tensor:
    """A contiguous copy whose last byte is the last before a page that may not be touched, or for an empty one, t."""
    size = t.numel() * t.element_size()
    if size == 0:
        return t.contiguous()
    pages = -(-size // PAGE)
    memory = mmap.mmap(-1, (pages + 1) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mprotect(start + pages * PAGE, PAGE, PROT_NONE) == 0
    # The tensor keeps the map: it is gone with the last of them, or a process would have too many.
    return torch.frombuffer(memory, dtype=t.dtype, count=t.numel(), offset=pages * PAGE - size).view(t.shape).copy_(t)


def freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def freed_and_strided(t: Tensor) -> Tensor:
    memory = t.clone().repeat(2, *[1] * max(t.dim() - 1, 0))
    rows = memory[::2]
    memory.untyped_storage().resize_(0)
    return rows


def shortened(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(max(t.numel() * t.element_size() - 1, 0))
    return t


def shared(t: Tensor) -> Tensor:
    """Shares memory with nothing but itself: all elements are one."""
    return t.flatten()[:1].expand(t.numel()).view(t.shape) if t.numel() else t


def leaf(t: Tensor) -> Tensor:
    return t.clone().requires_grad_() if t.is_floating_point() else t


# What becomes of a right tensor.
TENSORS: dict[str, Callable[[Tensor], Any]] = {
    "freed": freed,
    "freed, strided": freed_and_strided,
    "shortened by a byte": shortened,
    "on meta": lambda t: t.to("meta"),
    "a row less": lambda t: t[:-1] if t.dim() else t.expand(2),
    "a row more": lambda t: torch.cat([t, t[:1]]) if t.dim() else t.expand(3),
    "without rows": lambda t: t[:0] if t.dim() else t.expand(0),
    "0-d": lambda t: t.flatten()[0],
    "one dimension more": lambda t: t[None],
    "70 dimensions": lambda t: t.view(*[1] * (70 - t.dim()), *t.shape),
    "transposed": lambda t: t.t() if t.dim() == 2 else t,
    "every other element": lambda t: t.repeat_interleave(2, -1)[..., ::2] if t.dim() else t,
    "one element expanded": shared,
    "float64": lambda t: t.double(),
    "bfloat16": lambda t: t.bfloat16(),
    "int64": lambda t: t.long(),
    "uint8": lambda t: t.to(torch.uint8),
    "bool": lambda t: t.bool(),
    "complex64": lambda t: t.to(torch.complex64),
    "conjugated": lambda t: t.to(torch.complex64).conj(),
    "negated view": lambda t: t.to(torch.complex64).conj().imag,
    "float8": lambda t: t.float().to(torch.float8_e4m3fn),
    "quantized": lambda t: torch.quantize_per_tensor(t.float(), 0.1, 0, torch.qint8),
    "sparse": lambda t: t.to_sparse() if t.dim() else t.reshape(1).to_sparse(),
    "sparse rows": lambda t: t.to_sparse_csr() if t.dim() == 2 else t,
    "nested": lambda t: torch.nested.nested_tensor([t, t]),
    "zero tensor": lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype),
    "leaf that requires grad": leaf,
    "inference tensor": lambda t: torch.inference_mode()(t.clone)(),
    "copied on write": lambda t: torch._lazy_clone(t.clone()),
    "huge values": lambda t: torch.full_like(
        t, 127 if t.dtype is torch.int8 else 3e38 if t.is_floating_point() else 2**62
    ),
    "negative values": lambda t: torch.full_like(t, -(2**62) if not t.is_floating_point() else -1.0),
    "NaN": lambda t: torch.full_like(t, math.nan) if t.is_floating_point() else t,
    "None": lambda t: None,
}
NUMBERS: list[Any] = [math.nan, math.inf, -math.inf, -1.0, 1e308, -0.0, 2**62, -(2**63), -1, 99, None, True, "a"]


# each loss's own numbers
PARAMETERS = {
    0: [2.0, 0.0, 1.0],
    1: [2.0, 1.0],
    3: [4.0, 1.0, 0.05, 1.0],
    4: [2.0, 0.0],
    6: [0.25, 2.0],
}


def rows_call(loss: int, dense: bool = False, dtype: torch.dtype = torch.float32) -> list[Any]:
    acc = torch.float64 if dtype is torch.float64 else torch.float32
    targets = torch.rand(ROWS, CLASSES).to(dtype) if dense else torch.randint(0, CLASSES, (ROWS,))
    weight, alpha = torch.rand(ROWS, 1, dtype=acc), torch.rand(CLASSES, dtype=acc)
    return [
        torch.randn(ROWS, CLASSES).to(dtype),
        targets,
        None if dense else torch.rand(ROWS, dtype=acc),
        weight,
        alpha,
        torch.tensor(2.0, dtype=acc),
        loss,
        [0.25, 0.75, 1.0, *PARAMETERS[loss]],
        -2,
        1,
        0,
        0,
    ]


def pyramid_call(loss: int = 0) -> list[Any]:
    levels = [torch.randn(2, 2 * CLASSES, 3, 3), torch.randn(2, 2 * CLASSES, 2, 2)]
    return [
        levels,
        torch.randint(-1, CLASSES, (2, 26)),
        torch.rand(52),
        torch.rand(2, 26),
        torch.rand(CLASSES),
        torch.tensor(2.0),
        loss,
        [0.25, 0.75, 1.0, *PARAMETERS[loss]],
        -2,
        1,
        CLASSES,
        0,
    ]


def right_calls() -> Iterator[tuple[str, list[Any]]]:
    """Each op with right arguments."""
    one = torch.tensor(1.5)
    for op in ("loss", "loss_and_gradient", "loss_map"):
        yield op, rows_call(0)
    yield "loss_and_gradient", rows_call(4)
    yield "loss_map", rows_call(1, dense=True, dtype=torch.bfloat16)
    for op in ("gradient", "gradient_"):
        results = [torch.zeros(())] if op == "gradient_" else []
        yield op, [*rows_call(0), one, *results]
        yield op, [*rows_call(4), torch.rand(ROWS), *results]
        yield op, [*rows_call(3, dense=True), torch.rand(ROWS, CLASSES), *results]
    yield "scale_", [torch.randn(ROWS, CLASSES), one]
    yield "first_bad_id", [torch.randint(0, CLASSES, (ROWS,)), CLASSES, -2, True]
    for op in ("pyramid_loss", "pyramid_loss_and_gradient"):
        yield op, pyramid_call()
    yield "pyramid_loss_and_gradient", pyramid_call(1)
    for op, results in (
        ("pyramid_loss_and_gradient", []),
        ("pyramid_loss_map", []),
        ("pyramid_gradient", [torch.rand(2, 26)]),
    ):
        softmax = pyramid_call(4)
        softmax[1] = softmax[1].clamp(min=0)
        yield op, [*softmax, *results]
    yield "pyramid_gradient", [*pyramid_call(), one]
    yield "pyramid_gradient_", [*pyramid_call(), one, torch.zeros(())]


def changed(value: Any, change: Callable[[Tensor], Any]) -> Any:
    return [change(value[0]), *value[1:]] if isinstance(value, list) else change(value)


def copied(value: Any) -> Any:
    if isinstance(value, list):
        return [copied(t) for t in value]
    return guarded(value) if isinstance(value, Tensor) else value


def aliases(given: list[Any]) -> Iterator[tuple[str, Callable[[list[Any]], list[Any]]]]:
    """Arguments that share memory with what is written, at another place."""
    first = given[0][0] if isinstance(given[0], list) else given[0]

    def shifted(given: list[Any], at: int) -> list[Any]:
        wanted, memory = given[at], torch.zeros(4096, dtype=torch.uint8)
        size = first.numel() * first.element_size()
        written = memory[64 : 64 + size].view(first.dtype).view(first.shape)
        read = memory[64 + 8 : 64 + 8 + wanted.numel() * wanted.element_size()].view(wanted.dtype).view(wanted.shape)
        new = list(given)
        new[0], new[at] = ([written, *given[0][1:]] if isinstance(given[0], list) else written), read
        return new

    for at, value in enumerate(given[1:], 1):
        if isinstance(value, Tensor):
            yield f"argument {at} shares memory with what is written", lambda given, at=at: shifted(given, at)
    if isinstance(given[0], list):
        yield "one level twice", lambda given: [[given[0][0], given[0][0]], *given[1:]]


def calls() -> Iterator[tuple[str, str, Callable[[], list[Any]]]]:
    for number, (op, given) in enumerate(right_calls()):
        yield op, f"{number} right", lambda given=given: [copied(v) for v in given]
        for at, value in enumerate(given):
            is_tensor = isinstance(value, Tensor) or (isinstance(value, list) and isinstance(value[0], Tensor))
            for name in TENSORS if is_tensor else ():
                yield (
                    op,
                    f"{number} argument {at} {name}",
                    lambda given=given, at=at, name=name: [
                        changed(copied(v), TENSORS[name]) if i == at else copied(v) for i, v in enumerate(given)
                    ],
                )
            if isinstance(value, list) and isinstance(value[0], float):
                for i in range(len(value)):
                    for new in NUMBERS:
                        yield (
                            op,
                            f"{number} argument {at} is {new!r}",
                            lambda given=given, at=at, i=i, new=new: [
                                [*v[:i], new, *v[i + 1 :]] if j == at else copied(v) for j, v in enumerate(given)
                            ],
                        )
                for short in (value[:-1], [*value, 0.5], []):
                    yield (
                        op,
                        f"{number} argument {at} has {len(short)} numbers",
                        lambda given=given, at=at, short=short: [
                            short if j == at else copied(v) for j, v in enumerate(given)
                        ],
                    )
                continue
            for new in () if is_tensor else NUMBERS:
                yield (
                    op,
                    f"{number} argument {at} is {new!r}",
                    lambda given=given, at=at, new=new: [new if i == at else copied(v) for i, v in enumerate(given)],
                )
        if op in IN_PLACE_OPS:
            for name, change in aliases(given):
                yield op, f"{number} {name}", lambda given=given, change=change: change(given)


# glibc fills what malloc returns with the one and what is freed with the other, as MALLOC_PERTURB_ in test_hostile.py
# asks.
UNWRITTEN = (0xAA, 0x55)


def is_written(results: Any) -> bool:
    """Whether the op filled every element of its results: no element has all bytes of fresh memory."""
    tensors = results if isinstance(results, (list, tuple)) else [results]
    for t in (t for part in tensors for t in (part if isinstance(part, (list, tuple)) else [part])):
        if t is None or t.device.type == "meta" or t.numel() == 0:
            continue
        elements = t.detach().reshape(-1, 1).view(torch.uint8)
        if any(bool((elements == byte).all(1).any()) for byte in UNWRITTEN):
            return False
    return True


def outcome(op: str, make: Callable[[], list[Any]]) -> str:
    try:
        given = make()
    except Exception as error:  # this torch cannot make such a tensor
        return f"not made: {type(error).__name__}"
    before = [t._version for t in written_of(op, given)]
    try:
        results = getattr(ops, op)(*given)
    except Exception as error:  # whatever a user could catch
        return type(error).__name__
    if op in IN_PLACE_OPS:
        after = [t._version for t in written_of(op, given)]
        return "right" if all(b < a for b, a in zip(before, after)) else "wrong: written without a new version"
    return "right" if is_written(results) else "wrong: a result was not written"


def written_of(op: str, given: list[Any]) -> list[Tensor]:
    if op not in IN_PLACE_OPS:
        return []
    tensors = given[0] if isinstance(given[0], list) else [given[0]]
    return [t for t in tensors if isinstance(t, Tensor) and not t.is_inference()]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    assert not is_written(torch.empty(4096)), "MALLOC_PERTURB_ has no effect"
    for op, name, make in calls():
        sys.stdout.write(json.dumps([op, name]) + "\t")
        sys.stdout.flush()  # before the call, so that the last line names the one that ended the process
        sys.stdout.write(outcome(op, make) + "\n")

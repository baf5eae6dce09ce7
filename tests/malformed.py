# Owns: every parameter of every loss with every kind of wrong or odd value, alone and in pairs; run by
# test_malformed.py in a process of its own, which an unchecked argument could end. Writes one line per call.
# Must not know: which values are wrong. Not among them: a tensor whose storage was freed, for which torch's own x + 1
# ends the process.
from __future__ import annotations

import inspect
import itertools
import json
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import focal_ext
import numpy as np
import torch
from torch import Tensor

ROWS, CLASSES = 6, 4
LOSSES = [name for name in focal_ext.__all__ if name in focal_ext.reference.__all__]
DTYPES = sorted({value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=str)


def of_dtype(dtype: torch.dtype) -> Callable[[], Tensor]:
    """Zeros; for dtypes that only name bits, which no operation fills, memory as it is."""
    try:
        torch.zeros(1).to(dtype)
    except (NotImplementedError, RuntimeError):
        return lambda: torch.empty(ROWS, CLASSES, dtype=dtype)
    return lambda: torch.zeros(ROWS, CLASSES).to(dtype)


def at_the_end_of_a_page() -> Tensor:
    """The last elements of a large storage, whose neighbours are not the tensor's."""
    return torch.randn(4096)[-ROWS * CLASSES :].view(ROWS, CLASSES)


class Subclass(Tensor):
    pass


# Made anew for each call: no call may depend on what another wrote.
VALUES: dict[str, Callable[[], Any]] = {
    **{
        repr(value): lambda value=value: value
        for value in (
            None,
            True,
            False,
            0,
            1,
            -1,
            3,
            255,
            2**31,
            2**63,
            -(2**63),
            10**400,
            0.5,
            -0.5,
            2.0,
            1e-300,
            1e300,
            1j,
        )
    },
    **{
        repr(value): lambda value=value: value
        for value in (
            "",
            "sum",
            "none",
            "positives",
            "\0",
            b"sum",
            (),
            [],
            [1],
            [0.5] * CLASSES,
            ["a"] * CLASSES,
            [[0.5]],
            {},
            {1: 2},
            int,
            print,
        )
    },
    **{f"float {value}": lambda value=value: float(value) for value in ("nan", "inf", "-inf", "-0.0", "5e-324")},
    "an object": object,
    "numpy scalar": lambda: np.float32(0.25),
    "numpy integer": lambda: np.int64(1),
    "numpy NaN": lambda: np.float64("nan"),
    "numpy vector": lambda: np.full(CLASSES, 0.5),
    "numpy matrix": lambda: np.zeros((ROWS, CLASSES)),
    **{
        f"tensor {dtype}": of_dtype(dtype) for dtype in DTYPES if "quint" not in str(dtype) and "qint" not in str(dtype)
    },
    **{
        f"tensor {shape}": lambda shape=shape: torch.rand(shape)
        for shape in (
            (),
            (1,),
            (0,),
            (ROWS,),
            (CLASSES,),
            (ROWS, 1),
            (1, CLASSES),
            (CLASSES, ROWS),
            (1, ROWS, CLASSES),
            (0, CLASSES),
            (ROWS, 0),
            (ROWS + 1, CLASSES),
            (1,) * 30,
        )
    },
    **{
        f"ids {shape}": lambda shape=shape: torch.zeros(shape, dtype=torch.int64)
        for shape in ((), (1,), (ROWS,), (ROWS, 1), (ROWS - 1,), (1, ROWS))
    },
    **{
        f"ids of {value}": lambda value=value: torch.full((ROWS,), value)
        for value in (-3, CLASSES, CLASSES + 1, 2**31, 2**32, 2**63 - 1, -(2**63))
    },
    **{
        f"tensor of {value}": lambda value=value: torch.full((ROWS, CLASSES), float(value))
        for value in ("nan", "inf", "-inf", 1e30, -1, 2)
    },
    **{f"0-d of {value}": lambda value=value: torch.tensor(float(value)) for value in ("nan", "inf", 0, -1)},
    "classes of NaN": lambda: torch.full((CLASSES,), float("nan")),
    "on meta": lambda: torch.empty(ROWS, CLASSES, device="meta"),
    "ids on meta": lambda: torch.empty(ROWS, dtype=torch.int64, device="meta"),
    "sparse": lambda: torch.eye(ROWS, CLASSES).to_sparse(),
    "sparse rows": lambda: torch.eye(ROWS, CLASSES).to_sparse_csr(),
    "nested": lambda: torch.nested.nested_tensor([torch.rand(CLASSES), torch.rand(CLASSES)], layout=torch.jagged),
    "quantized": lambda: torch.quantize_per_tensor(torch.rand(ROWS, CLASSES), 0.1, 0, torch.qint8),
    "expanded": lambda: torch.rand(1, CLASSES).expand(ROWS, CLASSES),
    "all one element": lambda: torch.rand(()).expand(ROWS, CLASSES),
    "transposed": lambda: torch.rand(CLASSES, ROWS).t(),
    "overlapping": lambda: torch.rand(64).as_strided((ROWS, CLASSES), (1, 1)),
    "unaligned": lambda: torch.rand(ROWS * CLASSES + 1)[1:].view(ROWS, CLASSES),
    "at the end of a page": at_the_end_of_a_page,
    "negated view": lambda: torch.zeros(ROWS, CLASSES, dtype=torch.complex64).conj().imag,
    "conjugated view": lambda: torch.zeros(ROWS, CLASSES, dtype=torch.complex64).conj(),
    "leaf that requires grad": lambda: torch.rand(ROWS, CLASSES, requires_grad=True),
    "parameter": lambda: torch.nn.Parameter(torch.rand(CLASSES)),
    "subclass": lambda: torch.rand(ROWS, CLASSES).as_subclass(Subclass),
    "inference tensor": lambda: torch.inference_mode()(torch.rand)(ROWS, CLASSES),
}


def ordinary_calls() -> Iterator[tuple[str, dict[str, Any]]]:
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(ROWS, CLASSES, generator=rng) * 3
    yield (
        "ids, sum",
        {
            "inputs": logits.clone().requires_grad_(),
            "targets": torch.tensor([0, -1, 2, CLASSES, -2, 3]),
            "reduction": "sum",
        },
    )
    yield (
        "dense, none",
        {
            "inputs": logits.double().requires_grad_(),
            "targets": torch.rand(ROWS, CLASSES, generator=rng, dtype=torch.float64),
            "reduction": "none",
        },
    )
    yield (
        "half, mean",
        {
            "inputs": logits.bfloat16(),
            "targets": torch.tensor([0, -1, 2, 1, 1, 3], dtype=torch.int16),
            "reduction": "mean",
        },
    )


def widened(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def is_far_off(targets: Any) -> bool:
    """Dense targets, which are not checked, so far outside [0, 1] that 1 - t and t cancel in every precision: no value
    is the right one."""
    return (
        isinstance(targets, Tensor)
        and targets.is_floating_point()
        and bool((targets.detach().double().abs() > 1e6).any())
    )


def outcome(loss: str, call: Callable[[], dict[str, Any]]) -> str:
    """ "right", the exception's type, or what is wrong with the result."""
    arguments = call()
    try:
        result = getattr(focal_ext, loss)(**arguments)
        if result.requires_grad:
            result.sum().backward()
    except Exception as error:  # whatever a user could catch
        return type(error).__name__
    arguments = call()
    if result.device.type == "meta":
        return "right"
    try:
        want = getattr(focal_ext.reference, loss)(
            **{name: widened(value) for name, value in arguments.items() if name != "overwrite_inputs"}
        ).double()
    except Exception as error:  # the same arguments must not be refused by one and taken by the other
        return f"wrong: the reference raises {type(error).__name__}: {error}"
    narrow = arguments["inputs"].dtype in (torch.float16, torch.bfloat16)
    got = result.detach().as_subclass(Tensor).double()
    finite = want.abs() < torch.finfo(result.dtype).max
    if is_far_off(arguments["targets"]):
        return "right"
    return (
        "right"
        if torch.allclose(got[finite], want[finite], rtol=2e-2 if narrow else 1e-4, atol=1e-6, equal_nan=True)
        else f"wrong: {got.tolist()} for {want.tolist()}"
    )


def replaced(base: dict[str, Any], changes: dict[str, str]) -> dict[str, Any]:
    """A fresh copy of the call with some arguments replaced by values of those names."""
    torch.manual_seed(0)
    fresh = {
        name: value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value
        for name, value in base.items()
    }
    return {**fresh, **{parameter: VALUES[value]() for parameter, value in changes.items()}}


# Losses of one logit share their rules, the softmax has its own.
THOROUGH = ("sigmoid_focal_loss", "softmax_focal_loss")


def rows() -> Iterator[tuple[str, str, dict[str, Any], dict[str, str]]]:
    """Every parameter times every value, for every ordinary call of the thorough losses and of others by turns; then
    pairs of both drawn at random, the same at every run."""
    draw, names = random.Random(0), list(VALUES)
    for loss in LOSSES:
        parameters, calls = list(inspect.signature(getattr(focal_ext, loss)).parameters), list(ordinary_calls())
        for (i, parameter), (j, value) in itertools.product(enumerate(parameters), enumerate(VALUES)):
            turn = (i + j) % len(calls)
            for name, base in calls if loss in THOROUGH else calls[turn : turn + 1]:
                yield loss, name, base, {parameter: value}
        for name, base in calls * 250:
            yield loss, name, base, {parameter: draw.choice(names) for parameter in draw.sample(parameters, 2)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for loss, name, base, changes in rows():
        sys.stdout.write(json.dumps([loss, name, changes]) + "\t")
        sys.stdout.flush()  # before the call, so that the last line names the one that ended the process
        sys.stdout.write(outcome(loss, lambda base=base, changes=changes: replaced(base, changes)) + "\n")

# Owns: losses in a process that runs out of memory at any of a call's allocations; run by test_scarce_memory.py in a
# process of its own, whose address space it limits. Writes one line per call and limit.
# Must not know: how many allocations a call makes.
from __future__ import annotations

import json
import resource
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import focal_ext
import torch
from torch import Tensor

ROWS, CLASSES = 2**14, 80
SIZE = ROWS * CLASSES * 4  # bytes of the logits
# beyond what is in use when the call begins
ROOM = [SIZE * share // 8 for share in (0, 1, 3, 5, 9, 13, 17, 21, 25, 33, 41, 57, 73)]


class Step(NamedTuple):
    """A forward and a backward; `tensors` are the user's, `leaves` those whose .grad a backward fills."""

    tensors: list[Tensor]
    leaves: list[Tensor]
    forward: Callable[[], Tensor]
    overwritten: Sequence[Tensor] = ()  # what a backward that succeeds may replace

    def run(self) -> Tensor:
        loss = self.forward()
        loss.sum().backward() if loss.dim() else loss.backward()
        return loss.detach()


def labels(*shape: int) -> Tensor:
    return torch.randint(-2, CLASSES + 1, shape, generator=torch.Generator().manual_seed(1))


def logits(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 4


def rows(dtype: torch.dtype = torch.float32, **options: object) -> Step:
    x, ids = logits(ROWS, CLASSES).to(dtype).requires_grad_(), labels(ROWS)
    return Step([x, ids], [x], lambda: focal_ext.sigmoid_focal_loss(x, ids, **options))


def converted_targets() -> Step:
    x, t = logits(ROWS, CLASSES).requires_grad_(), torch.sigmoid(logits(ROWS, CLASSES).double())
    return Step([x, t], [x], lambda: focal_ext.quality_focal_loss(x, t, reduction="sum"))


def overwritten(view: Callable[[Tensor], Tensor], dtype: torch.dtype = torch.float32) -> Step:
    leaf, ids = torch.zeros((), dtype=dtype).requires_grad_(), labels(ROWS)
    x = view(logits(ROWS, CLASSES).to(dtype) + leaf)
    return Step(
        [x, ids],
        [leaf],
        lambda: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum", normalizer="positives", overwrite_inputs=True),
        [x],
    )


def pyramid() -> Step:
    levels = [logits(1, CLASSES, side, side).requires_grad_() for side in (128, 64, 32)]
    ids = labels(1, sum(level[0, 0].numel() for level in levels))
    return Step([*levels, ids], levels, lambda: focal_ext.pyramid.sigmoid_focal_loss(levels, ids, CLASSES))


def overwritten_pyramid() -> Step:
    leaf = torch.zeros(()).requires_grad_()
    shapes, layouts = (128, 64), (Tensor.contiguous, lambda level: level.transpose(2, 3))  # the second costs a copy
    levels = [layout(logits(1, CLASSES, side, side) + leaf) for side, layout in zip(shapes, layouts, strict=True)]
    ids = labels(1, sum(level[0, 0].numel() for level in levels))
    return Step(
        [*levels, ids],
        [leaf],
        lambda: focal_ext.pyramid.sigmoid_focal_loss(levels, ids, CLASSES, overwrite_inputs=True),
        levels,
    )


def head() -> Step:
    features = logits(1, 16, 128, 128).requires_grad_()
    weight, bias = (logits(CLASSES, 16, 3, 3) / 40).requires_grad_(), logits(CLASSES).requires_grad_()
    ids = labels(1, 128 * 128)
    tensors = [features, weight, bias]
    return Step(
        [*tensors, ids],
        tensors,
        lambda: focal_ext.conv_sigmoid_focal_loss(
            [features], weight, bias, ids, CLASSES, padding=1, memory_budget=SIZE // 2
        ),
    )


STEPS: dict[str, Callable[[], Step]] = {
    "sum": lambda: rows(reduction="sum", normalizer="positives"),
    "mean": lambda: rows(reduction="mean"),
    "none": lambda: rows(reduction="none"),
    "bfloat16": lambda: rows(torch.bfloat16, reduction="sum", normalizer="positives"),
    "dense targets of another dtype": converted_targets,
    "overwritten": lambda: overwritten(lambda x: x),
    "overwritten, bfloat16": lambda: overwritten(lambda x: x, torch.bfloat16),
    "overwritten, strided": lambda: overwritten(lambda x: x.t().contiguous().t()),
    "pyramid": pyramid,
    "overwritten pyramid": overwritten_pyramid,
    "fused head": head,
}
NEEDS_MEMORY = {name: name not in ("overwritten", "overwritten, bfloat16") for name in STEPS}


def in_use() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def limited(room: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (hard if room is None else in_use() + room, hard))


def attempt(step: Step, room: int | None) -> tuple[Tensor | None, str]:
    limited(room)
    try:
        return step.run(), ""
    except Exception as error:  # what a user could catch
        return None, f"{type(error).__name__}: {str(error)[:200]}"
    finally:
        limited(None)


def results(step: Step, loss: Tensor) -> list[Tensor]:
    return [
        loss,
        *(leaf.grad.clone() for leaf in step.leaves if leaf.grad is not None),
        *(t.detach().clone() for t in step.overwritten),
    ]


def agree(got: list[Tensor], want: list[Tensor]) -> bool:
    """To the bit, but for the loss: without memory for a table a half type's logits are computed, and added up in
    another order."""
    return torch.allclose(got[0], want[0], rtol=64 * 2.0**-24, atol=0) and all(map(torch.equal, got[1:], want[1:]))


def judged(make: Callable[[], Step], want: list[Tensor], room: int) -> dict[str, object]:
    step = make()
    before = [t.detach().clone() for t in step.tensors]
    loss, error = attempt(step, room)
    if loss is not None:
        return {"raised": None, "right": agree(results(step, loss), want)}
    untouched = all(torch.equal(t, was) for t, was in zip(step.tensors, before, strict=True)) and all(
        leaf.grad is None for leaf in step.leaves
    )
    again, second = attempt(step, None)
    return {"raised": error, "untouched": untouched, "again": second or agree(results(step, again), want)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name, make in STEPS.items():
        step = make()
        loss, error = attempt(step, None)
        want = results(step, loss)
        for room in ROOM:
            print(json.dumps({"call": name, "room": room / SIZE, **judged(make, want, room)}), flush=True)

# Owns: the small check of an installation: every loss and dtype against float64, one large call against eager PyTorch.
# Must not know: how a loss is computed, what is printed.
from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import losses, pyramid, reference
from ._spec import FUNCTIONS, LOSSES

Targets = Tensor | tuple[Tensor, Tensor]
CLASSES, CELLS, ANCHORS = 12, (16, 20), 9  # of the checked logits: [16 * 20 * 9, 12]
PYRAMID = "pyramid.sigmoid_focal_loss"

# What each loss is given of the class ids and of a score for each.
TARGETS: dict[str, Callable[[Tensor, Tensor], Targets]] = {
    # softmax knows no background
    function.__name__: (
        (lambda ids, scores: (ids, scores))
        if spec.needs_scores
        else (lambda ids, scores: ids.clamp(min=0))
        if spec.is_per_row
        else (lambda ids, scores: ids)
    )
    for function, spec in zip(FUNCTIONS, LOSSES)
}
TARGETS[PYRAMID] = TARGETS["sigmoid_focal_loss"]

# The largest relative error of a gradient. Half types are rounded once: half a unit in the last place, and a tenth of
# that for float32's own error. The tests hold float32 and float64 to 16 to 40 units, and the plain formulas, which
# stand in without a library, to 96.
ALLOWED = {
    torch.float64: 96 * 2.0**-52,
    torch.float32: 96 * 2.0**-23,
    torch.bfloat16: 0.55 * 2.0**-7,
    torch.float16: 0.55 * 2.0**-10,
}
SUM = {torch.float64: torch.float64}  # the dtype of a sum; float32 for all others
# probabilities where gradients of quality focal and asymmetric loss pass 0: no error is small there
SCORE, CLIP = (
    0.7,
    0.05,
)
EAGER_TENSORS = 16  # what the eager formula, ours and the logits take together, in tensors of the logits' size


class Checked(NamedTuple):
    """A loss in one dtype: the largest relative errors of its value and its gradient, or what it raised."""

    loss: str
    dtype: torch.dtype
    value: float
    gradient: float
    raised: str = ""

    @property
    def wrong(self) -> bool:
        """Where an error is not a number, too."""
        right = self.value <= ALLOWED[SUM.get(self.dtype, torch.float32)] and self.gradient <= ALLOWED[self.dtype]
        return bool(self.raised) or not right


class Timed(NamedTuple):
    """Seconds of forward and backward, medians of `rounds`."""

    ours: float
    eager: float
    rounds: int


def draw(anchors: int, classes: int, deviation: float, mean: float) -> tuple[Tensor, Tensor]:
    """Logits and class ids; 1 % of the anchors positive, 1 % ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(anchors, classes, generator=generator).mul_(deviation).add_(mean)
    kind = torch.rand(anchors, generator=generator)
    ids = torch.where(kind < 0.01, torch.randint(classes, (anchors,), generator=generator), -1)
    return logits, ids.masked_fill((kind >= 0.01) & (kind < 0.02), -2)


def fused(name: str, x: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    if name == PYRAMID:
        level = x.reshape(1, *CELLS, ANCHORS * CLASSES).permute(0, 3, 1, 2).contiguous()  # as a convolution writes it
        loss: Tensor = pyramid.sigmoid_focal_loss([level], ids[None], CLASSES, reduction="sum")
    else:
        loss = getattr(losses, name)(x, TARGETS[name](ids, scores), reduction="sum")
    return loss


def exact(name: str, x: Tensor, ids: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Value and gradient in float64 on the CPU, in plain PyTorch."""
    wide = x.detach().cpu().double().requires_grad_()
    loss = getattr(reference, name.removeprefix("pyramid."))(wide, TARGETS[name](ids, scores), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, wide)
    return loss.detach(), gradient


def errors(name: str, dtype: torch.dtype, device: torch.device) -> Checked:
    """The errors of a loss whose logits lie within [-16, 16], half a unit or more from where a gradient passes 0."""
    logits, ids = draw(CELLS[0] * CELLS[1] * ANCHORS, CLASSES, 3.0, -2.0)
    for zero in (math.log(SCORE / (1 - SCORE)), math.log(CLIP / (1 - CLIP))):
        logits = torch.where((logits - zero).abs() < 0.5, logits + 1, logits)
    logits, scores = logits.clamp_(-16, 16).to(dtype), torch.full(ids.shape, SCORE)
    try:
        x = logits.to(device).requires_grad_()
        loss = fused(name, x, ids.to(device), scores.to(device))
        loss.backward()
        assert x.grad is not None
        value, gradient = loss.detach().cpu().double(), x.grad.cpu().double()
    except Exception as error:  # whatever it is, the report goes on and shows it
        return Checked(name, dtype, float("nan"), float("nan"), f"{type(error).__name__}: {error}".splitlines()[0])
    right, slope = exact(name, logits, ids, scores)
    rounding = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps  # the step between subnormal numbers
    relative = (gradient - slope).abs().sub_(rounding).clamp_(min=0) / slope.abs().clamp(min=rounding)
    return Checked(name, dtype, float((value - right).abs() / right.abs()), float(relative.max()))


def check(device: torch.device) -> Iterator[Checked]:
    for name in TARGETS:
        for dtype in ALLOWED:
            yield errors(name, dtype, device)


def eager(x: Tensor, ids: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """The focal loss as torchvision's RetinaNet calls its own: a one-hot, a mask, the formula term by term."""
    foreground, kept = ids >= 0, ids != -2
    targets = torch.zeros_like(x)
    targets[foreground, ids[foreground]] = 1.0
    x, t = x[kept], targets[kept]
    p = torch.sigmoid(x)
    p_t = p * t + (1 - p) * (1 - t)
    cross_entropy = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    return ((alpha * t + (1 - alpha) * (1 - t)) * cross_entropy * (1 - p_t) ** gamma).sum() / max(
        1, int(foreground.sum())
    )


def seconds(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, ids: Tensor) -> float:
    def wait() -> None:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)

    x.grad = None
    wait()
    start = time.perf_counter()
    loss(x, ids).backward()
    wait()
    return time.perf_counter() - start


def compare(device: torch.device, anchors: int, classes: int, budget: float = 3.0, most: int = 20) -> Timed:
    """Forward and backward in float32, the two in turn; one round to warm up, then as many as fit `budget` seconds."""
    x, ids = (t.to(device) for t in draw(anchors, classes, 1.5, -6.0))
    x.requires_grad_()

    def ours(x: Tensor, ids: Tensor) -> Tensor:
        return losses.sigmoid_focal_loss(x, ids, reduction="sum", normalizer="positives")

    times: list[tuple[float, float]] = []
    begin = time.perf_counter()
    while len(times) < 2 or (len(times) <= most and time.perf_counter() - begin < budget):
        times.append((seconds(ours, x, ids), seconds(eager, x, ids)))
    medians = [sorted(column)[(len(times) - 1) // 2] for column in zip(*times[1:])]
    return Timed(medians[0], medians[1], len(times) - 1)


def fitting(anchors: int, classes: int, free: int) -> int:
    """The anchors halved until the eager formula's tensors of float32 fit `free` bytes."""
    while anchors and EAGER_TENSORS * anchors * classes * 4 > free:
        anchors //= 2
    return anchors

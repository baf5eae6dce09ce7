# Owns: the cost of a call that has nothing to compute: 64 logits, forward and backward, and where that time goes.
# Must not know: kernels. Larger sizes are compare.py.
"""python -m bench.overhead: microseconds of a step on 64 logits, against the same formula in eager PyTorch,
interleaved.

The breakdown replaces one layer after the other by what lies below it, so each row contains the next.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import focal_ext
import torch
import torch.nn.functional as F
from focal_ext import _autograd, _torch_private
from focal_ext._native import ops
from torch import Tensor

from .measure import Step, interleaved

ROWS, CLASSES = 8, 8


def eager_focal(x: Tensor, t: Tensor) -> Tensor:
    """torchvision.ops.sigmoid_focal_loss at its defaults, summed."""
    p = torch.sigmoid(x)
    ce = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    return ((0.25 * t + 0.75 * (1 - t)) * (ce * ((1 - p_t) ** 2.0))).sum()


def eager_quality(x: Tensor, t: Tensor) -> Tensor:
    return ((x.sigmoid() - t).abs() ** 2.0 * F.binary_cross_entropy_with_logits(x, t, reduction="none")).sum()


def eager_varifocal(x: Tensor, t: Tensor) -> Tensor:
    focus = torch.where(t > 0, t, 0.75 * x.sigmoid() ** 2.0)
    return (focus * F.binary_cross_entropy_with_logits(x, t, reduction="none")).sum()


def eager_asymmetric(x: Tensor, t: Tensor) -> Tensor:
    p = x.sigmoid()
    negative = (1 - p + 0.05).clamp(max=1)
    ce = t * p.clamp(min=1e-8).log() + (1 - t) * negative.clamp(min=1e-8).log()
    p_t = p * t + negative * (1 - t)
    return -(ce * (1 - p_t) ** (1.0 * t + 4.0 * (1 - t))).sum()


def eager_softmax(x: Tensor, t: Tensor) -> Tensor:
    """Of class ids by gather, of dense targets at every class."""
    log_p = torch.log_softmax(x, dim=-1)
    if t.dim() == 1:
        log_p = log_p.gather(1, t[:, None])
        return -((1 - log_p.exp()) ** 2.0 * log_p).sum()
    return -(t * (1 - log_p.exp()) ** 2.0 * log_p).sum()


def one_hot(ids: Tensor, scores: Tensor | float = 1.0) -> Tensor:
    """What eager PyTorch has to make of class ids first."""
    return (ids[:, None] == torch.arange(CLASSES)) * (scores if isinstance(scores, float) else scores[:, None])


def steps(losses: dict[Any, Callable[[Tensor], Tensor]]) -> dict[Any, Step]:
    return {name: Step(loss, torch.randn(ROWS, CLASSES, requires_grad=True)) for name, loss in losses.items()}


def layers(t: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The call with one layer less at a time."""
    _, checked, *rest = focal_ext.sigmoid_focal_loss.__wrapped__(
        torch.randn(ROWS, CLASSES, requires_grad=True), t, reduction="sum"
    )

    def ops_and_backward(x: Tensor) -> Tensor:
        with _torch_private.below_autograd():
            ops.loss_and_gradient(x, *checked)
        return x.sum()  # a backward of one node

    return {
        "whole call": lambda x: focal_ext.sigmoid_focal_loss(x, t, reduction="sum"),
        "without argument checks": lambda x: _autograd.dispatch((x,), checked, *rest[:3]),
        "without choosing an implementation": lambda x: _autograd._apply_one_pass(checked, "sum", x),
        "the op and a backward of one node": ops_and_backward,
        "a backward of one node": lambda x: x.sum(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each loss")
    seconds = parser.parse_args().seconds
    torch.set_num_threads(1)
    ids = torch.tensor([0, -1, -1, 3, 8, -1, 7, -1])
    t = (ids[:, None] == torch.arange(CLASSES)).float()
    pair, labels = (ids, torch.rand(ROWS)), ids.remainder(CLASSES)
    shares = torch.rand(ROWS, CLASSES).softmax(1)
    # name -> eager and ours on dense targets, eager and ours on class ids
    rows = {
        "sigmoid_focal_loss": (
            lambda x: eager_focal(x, t),
            lambda x: focal_ext.sigmoid_focal_loss(x, t, reduction="sum"),
            lambda x: eager_focal(x, one_hot(ids)),
            lambda x: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum"),
        ),
        "softmax_focal_loss": (
            lambda x: eager_softmax(x, shares),
            lambda x: focal_ext.softmax_focal_loss(x, shares, reduction="sum"),
            lambda x: eager_softmax(x, labels),
            lambda x: focal_ext.softmax_focal_loss(x, labels, reduction="sum"),
        ),
        "quality_focal_loss": (
            lambda x: eager_quality(x, t),
            lambda x: focal_ext.quality_focal_loss(x, t, reduction="sum"),
            lambda x: eager_quality(x, one_hot(*pair)),
            lambda x: focal_ext.quality_focal_loss(x, pair, reduction="sum"),
        ),
        "varifocal_loss": (
            lambda x: eager_varifocal(x, t),
            lambda x: focal_ext.varifocal_loss(x, t, reduction="sum"),
            lambda x: eager_varifocal(x, one_hot(*pair)),
            lambda x: focal_ext.varifocal_loss(x, pair, reduction="sum"),
        ),
        "asymmetric_loss": (
            lambda x: eager_asymmetric(x, t),
            lambda x: focal_ext.asymmetric_loss(x, t, reduction="sum"),
            lambda x: eager_asymmetric(x, one_hot(ids)),
            lambda x: focal_ext.asymmetric_loss(x, ids, reduction="sum"),
        ),
    }
    print(
        f"{'us, forward and backward of 64 logits':38} {'eager':>6} {'ours':>6} {'share':>6} | {'eager':>6} "
        f"{'ours':>6} {'share':>6}"
    )
    print(f"{'(the quickest fifth of the turns)':38} {'dense targets':^20} | {'class ids':^20}")
    for name, calls in rows.items():
        timings = interleaved(steps(dict(enumerate(calls))), seconds, most=4000, in_a_row=20)
        eager, ours, eager_ids, ours_ids = (timing.p20 * 1e6 for timing in timings.values())
        print(
            f"{name:38} {eager:6.1f} {ours:6.1f} {ours / eager:6.0%} | {eager_ids:6.1f} {ours_ids:6.1f} "
            f"{ours_ids / eager_ids:6.0%}"
        )
    times = interleaved(steps(layers(t)), 2 * seconds, most=4000, in_a_row=20)
    print()
    for name, timing in times.items():
        print(f"{name:38} {timing.p20 * 1e6:6.1f}")


if __name__ == "__main__":
    main()

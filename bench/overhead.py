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
from focal_ext import _autograd, _torch_private
from focal_ext._native import ops
from torch import Tensor

from . import peers
from .measure import Step, interleaved

ROWS, CLASSES = 8, 8


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
            lambda x: peers.torchvision(x, t).sum(),
            lambda x: focal_ext.sigmoid_focal_loss(x, t, reduction="sum"),
            lambda x: peers.torchvision(x, one_hot(ids)).sum(),
            lambda x: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum"),
        ),
        "softmax_focal_loss": (
            lambda x: peers.softmax_dense(x, shares).sum(),
            lambda x: focal_ext.softmax_focal_loss(x, shares, reduction="sum"),
            lambda x: peers.softmax_gather(x, labels).sum(),
            lambda x: focal_ext.softmax_focal_loss(x, labels, reduction="sum"),
        ),
        "quality_focal_loss": (
            lambda x: peers.quality(x, t).sum(),
            lambda x: focal_ext.quality_focal_loss(x, t, reduction="sum"),
            lambda x: peers.quality(x, one_hot(*pair)).sum(),
            lambda x: focal_ext.quality_focal_loss(x, pair, reduction="sum"),
        ),
        "varifocal_loss": (
            lambda x: peers.mmdet_varifocal(x, t).sum(),
            lambda x: focal_ext.varifocal_loss(x, t, reduction="sum"),
            lambda x: peers.mmdet_varifocal(x, one_hot(*pair)).sum(),
            lambda x: focal_ext.varifocal_loss(x, pair, reduction="sum"),
        ),
        "asymmetric_loss": (
            lambda x: peers.timm_asymmetric(x, t).sum(),
            lambda x: focal_ext.asymmetric_loss(x, t, reduction="sum"),
            lambda x: peers.timm_asymmetric(x, one_hot(ids)).sum(),
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

# Owns: `python -m focal_ext`: its options, what it prints, its exit code.
# Must not know: how anything is checked, timed or found out.
"""python -m focal_ext: what is installed, whether its values are right and how fast it is; exit code 1 if one is
wrong."""

from __future__ import annotations

import argparse
import sys
import textwrap

import torch

from . import _installation as installation
from . import _self_check as self_check
from ._native import runs_on

CLASSES = 80


def table(checked: list[self_check.Checked]) -> str:
    """A row for each loss, a column for each dtype: the errors of value and gradient."""
    dtypes = list(self_check.ALLOWED)
    rows = [["", *(str(dtype).removeprefix("torch.") for dtype in dtypes)]]
    for loss in self_check.TARGETS:
        cells = {
            c.dtype: f"{c.value:.0e} {c.gradient:.0e}{' WRONG' if c.wrong else ''}" for c in checked if c.loss == loss
        }
        rows.append([loss, *(cells[dtype] for dtype in dtypes)])
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def timing(device: torch.device, wanted: int) -> str:
    """One call of the size of a RetinaNet's image, or of what fits the memory."""
    anchors = self_check.fitting(wanted, CLASSES, installation.free_bytes(device))
    if not anchors:
        return "  no time measured: too little memory is free"
    try:
        timed = self_check.compare(device, anchors, CLASSES)
    except Exception as error:  # what failed is said above already; the rest of the report is still to come
        return f"  no time measured: {type(error).__name__}: {error}"
    rounds = f"medians of {timed.rounds}" if timed.rounds > 1 else "one each"
    less = "" if anchors == wanted else f" (of {wanted:,}: memory is short)"
    return (
        f"  {anchors:,} x {CLASSES} float32{less}, forward and backward: sigmoid_focal_loss {timed.ours * 1e3:.3g} ms,"
        f" eager PyTorch {timed.eager * 1e3:.3g} ms\n"
        f"  ({timed.eager / timed.ours:.2g} times as long; {rounds} in turn, in one process, allocator as it is)"
    )


def report(device: torch.device, anchors: int) -> int:
    """Prints what was found on a device; returns how many of its values are wrong, one a loss and dtype."""
    kernels = "fused kernels" if runs_on(device) else "plain PyTorch"
    name = f" {torch.cuda.get_device_name(device)}" if device.type == "cuda" else ""
    print(f"\nOn {device}{name}, {kernels}; largest relative error of the sum and of a gradient, against float64:")
    checked = list(self_check.check(device))
    print(table(checked))
    for wrong in (c for c in checked if c.wrong):
        allowed = f"a gradient may be off by {self_check.ALLOWED[wrong.dtype]:.1e}"
        print(f"  WRONG: {wrong.loss}, {wrong.dtype}: {wrong.raised or allowed}")
    if anchors:
        print(timing(device, anchors))
    return sum(c.wrong for c in checked)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m focal_ext",
        description="What is installed, whether its values are right on this machine, and how fast it is.",
    )
    parser.add_argument(
        "--anchors",
        type=int,
        default=201_600,
        help="rows of the timed call, times 80 classes; 0 times nothing (default: %(default)s, a RetinaNet's image)",
    )
    options = parser.parse_args(arguments)
    print("focal_ext")
    print(installation.lines({**installation.build(), **installation.facts()}))
    missing = installation.advice()
    wrong = sum(report(device, options.anchors) for device in installation.devices())
    for paragraph in missing:
        print("\n" + textwrap.fill(f"To do: {paragraph}", 110))
    if wrong:
        print(f"\n{wrong} values are WRONG: do not train with this installation; please report this whole text.")
        return 1
    print("\nAll values are right.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

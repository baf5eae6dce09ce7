# Owns: the drawing of what one call replaces: every operation of the eager formula and of ours, counted while they run.
# Must not know: clocks, the CSV files.
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from . import baselines
from .cases import synthetic

CREATED = ("zeros", "ones", "empty", "full")  # operations that write a tensor and read none


class Operation(NamedTuple):
    """What it reads and writes, in units of the logits."""

    reads: float
    writes: float


class Traffic(TorchDispatchMode):
    """Counts the memory that operations read and write; views and readings of one number by the host are left out."""

    def __init__(self, unit: int) -> None:
        super().__init__()
        self.unit, self.operations = unit, list[Operation]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not views and "scalar_dense" not in str(func):
            read, written = (
                [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)] for tree in ((args, kwargs), result)
            )
            if any(word in str(func) for word in CREATED):
                read = []
            if "index_put_." in str(func):  # in place: only the numbers that are put
                read = written = read[-1:]
            self.operations.append(Operation(*(sum(t.nbytes for t in ts) / self.unit for ts in (read, written))))
        return result


def operations(loss: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[Operation], int]:
    """Those of forward and backward, and how many of them are forward's."""
    case = synthetic("", 10_000, 80)
    logits = case.logits.requires_grad_()
    with Traffic(logits.nbytes) as traffic:
        value = loss(logits, case.ids)
        forward = len(traffic.operations)
        value.backward()
    return traffic.operations, forward


def counted() -> dict[str, tuple[list[Operation], int]]:
    import focal_ext

    assert focal_ext.build_info()["backend"] == "native", "the drawing is of the fused kernels: build them first"
    return {
        "eager PyTorch": operations(lambda x, ids: baselines.eager(x, ids, 2.0)),
        "focal_ext": operations(
            lambda x, ids: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum", normalizer="positives")
        ),
    }


def large(done: list[Operation]) -> list[Operation]:
    """Those on tensors of the logits' size."""
    return [operation for operation in done if operation.reads + operation.writes > 0.5]


def passes(done: list[Operation]) -> int:
    return round(sum(operation.reads + operation.writes for operation in done))


def draw(to: Path, dark: bool) -> None:
    """A pair of bars for each operation, in the order in which they run: what it reads upwards, what it writes down."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    found = counted()
    longest = max(len(done) for done, _ in found.values())
    with pyplot.style.context("dark_background" if dark else "default"):
        read_colour, write_colour = ("#60a5fa", "#fbbf24") if dark else ("#2563eb", "#d97706")
        figure, axes = pyplot.subplots(2, 1, figsize=(9, 3.6), layout="constrained", sharex=True, sharey=True)
        figure.set_facecolor("#0d1117" if dark else "white")
        for axis, (name, (done, forward)) in zip(axes, found.items()):
            places = range(1, len(done) + 1)
            axis.bar(places, [one.reads for one in done], color=read_colour, width=0.75, label="read")
            axis.bar(places, [-one.writes for one in done], color=write_colour, width=0.75, label="written")
            axis.axhline(0, color="#9ca3af", linewidth=0.8)
            count = len(large(done))
            axis.set_title(
                f"{name}: {count} operation{'s' * (count > 1)} on tensors of the logits' size, "
                f"{passes(done)} passes over their memory",
                fontsize=10,
                loc="left",
            )
            if forward < len(done) and count > 1:
                axis.axvline(forward + 0.5, color="#9ca3af", linestyle="--", linewidth=0.8)
                axis.text(forward + 0.2, 2.25, "forward", ha="right", fontsize=8)
                axis.text(forward + 0.9, 2.25, "backward", ha="left", fontsize=8)
            else:
                axis.text(1.8, 0.35, "reads the logits", fontsize=8, va="center")
                axis.text(1.8, -0.75, "writes the gradient, finished: backward has nothing to do", fontsize=8)
            axis.set_facecolor("none")
            axis.set_yticks([-1, 0, 1, 2], ["1", "0", "1", "2"], fontsize=8)
            axis.spines[["top", "right", "bottom"]].set_visible(False)
            axis.tick_params(axis="x", bottom=False, labelbottom=False)
        axes[0].set_xlim(0.2, longest + 0.8)
        axes[0].set_ylim(-1.5, 2.8)
        axes[0].legend(fontsize=8, frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 0.98))
        figure.supylabel("in units of the logits", fontsize=8)
        figure.supxlabel("one bar for each operation, in the order in which they run", fontsize=8)
        figure.savefig(to, dpi=150, facecolor=figure.get_facecolor())

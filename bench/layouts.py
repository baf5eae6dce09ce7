# Owns: the comparison of layouts: layers of a decoder, heat maps, masks, class axis 1 and pyramids, each against what
# users run.
# Must not know: how any of them works, how figures are drawn.
"""python -m bench.layouts [--csv bench/results/layouts.csv]"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

import focal_ext

from . import family_baselines, head, peers
from .compare import OURS, keep_memory, provenance, write
from .measure import Step, hush

Loss = Callable[[list[Tensor]], Tensor]


class Way(NamedTuple):
    """Leaves, and the losses of them by what computes them; ours is the first, and the others' times are told in it.
    `error`: of another's gradient against ours, in its largest, beyond which another loss was computed."""

    leaves: list[Tensor]
    losses: dict[str, Loss]
    error: float = 1e-4


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1.5 - 6
    return logits.to(dtype).requires_grad_()


def heat_maps() -> Way:
    """Six heads; a peak in every 2,000 cells, a bump of 3 cells about it."""
    generator = torch.Generator().manual_seed(1)
    peak = (torch.rand(6, 8, 10, 180, 180, generator=generator) < 1 / 2000).float()
    wide = torch.nn.functional.max_pool2d(peak.flatten(0, 1), 5, 1, 2).view_as(peak)
    maps = list(torch.where(peak == 1, 1.0, 0.6 * wide))
    leaves = [drawn(8, 10, 180, 180) for _ in maps]

    def each(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
        return lambda heads: sum((loss(x, t).sum() for x, t in zip(heads, maps)), torch.zeros(()))

    fused = each(family_baselines.gaussian_map_fused)
    return Way(leaves, {
        OURS: each(lambda x, t: focal_ext.gaussian_focal_loss(x, t, reduction="sum")),
        "eager PyTorch": each(peers.mmdet_gaussian),
        "torch.compile, eager": torch.compile(each(peers.mmdet_gaussian), dynamic=False),
        "torch.compile, fused": torch.compile(fused, dynamic=False),
    })  # fmt: skip


def decoder(name: str, eager: family_baselines.Baseline, fused: family_baselines.Baseline) -> Way:
    """Six layers, each matched anew: 20 of 300 queries to boxes, as detectors have them."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 80, (6, 16, 300), generator=generator)
    ids = ids.where(torch.rand(6, 16, 300, generator=generator) < 20 / 300, -1)
    scores = torch.rand(6, 16, 300, generator=generator)

    def by_layers(loss: family_baselines.Baseline) -> Loss:
        layers = [(i.flatten(), s.flatten()) for i, s in zip(ids, scores)]
        return lambda x: torch.stack([loss(y.flatten(0, 1), *p) for y, p in zip(x[0], layers)]).sum()

    def ours(x: list[Tensor]) -> Tensor:
        return getattr(focal_ext, name)(x[0], (ids, scores), reduction="sum", batch_dims=1).sum()

    return Way([drawn(6, 16, 300, 80)], {
        OURS: ours,
        "eager PyTorch": by_layers(eager),
        "torch.compile, fused": torch.compile(by_layers(fused), dynamic=False),
    })  # fmt: skip


def masks() -> Way:
    x = drawn(8, 3, 1024, 1024, dtype=torch.bfloat16)
    t = torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.1

    def loss(reduction: str, **options: int) -> Callable[[list[Tensor]], Tensor]:
        return lambda x: focal_ext.sigmoid_focal_loss(x[0], t, reduction=reduction, **options)

    return Way([x], {
        f"{OURS}, batch_dims=2": lambda x: loss("mean", batch_dims=2)(x).sum(),
        f"{OURS}, one sum": loss("sum"),
        f"{OURS}, loss map": lambda x: loss("none")(x).mean((2, 3)).sum(),
    }, torch.inf)  # fmt: skip  # a mean, a sum, a mean


def class_axis_1() -> Way:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 19, (4, 512, 512), generator=generator)

    def ours(x: list[Tensor]) -> Tensor:
        return focal_ext.softmax_focal_loss(x[0], ids, reduction="sum", class_dim=1)

    def rows(x: list[Tensor]) -> Tensor:
        return focal_ext.softmax_focal_loss(x[0].movedim(1, -1).flatten(0, 2), ids.flatten(), reduction="sum")

    def eager(x: list[Tensor]) -> Tensor:
        return peers.softmax_of_cross_entropy(x[0], ids).sum()

    return Way([drawn(4, 19, 512, 512)], {
        OURS: ours,
        f"{OURS}, movedim and rows": rows,
        "eager PyTorch": eager,
        "torch.compile, eager": torch.compile(eager, dynamic=False),
    })  # fmt: skip


def pyramids() -> Way:
    leaves = [drawn(1, head.ANCHORS * 80, *size) for size in head.SIZES]
    ids = head.labels(1, 80)
    scores = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2))
    of = focal_ext.pyramid
    return Way(leaves, {
        "sigmoid_focal_loss": lambda x: of.sigmoid_focal_loss(x, ids, 80, reduction="sum"),
        "quality_focal_loss": lambda x: of.quality_focal_loss(x, (ids, scores), 80, reduction="sum"),
        "varifocal_loss": lambda x: of.varifocal_loss(x, (ids, scores), 80, reduction="sum"),
    }, torch.inf)  # fmt: skip  # three losses


WAYS: dict[str, Callable[[], Way]] = {
    "gaussian_focal_loss, six heads [8, 10, 180, 180]": heat_maps,
    "matchability_aware_loss, [6, 16, 300, 80], batch_dims=1": lambda: decoder(
        "matchability_aware_loss",
        family_baselines.BASELINES["matchability_aware_loss (DEIM)"].eager[""],
        family_baselines.matchability_fused,
    ),
    "iou_aware_bce_loss, [6, 16, 300, 80], batch_dims=1": lambda: decoder(
        "iou_aware_bce_loss",
        family_baselines.BASELINES["iou_aware_bce_loss (LW-DETR)"].eager[""],
        family_baselines.iou_aware_fused,
    ),
    "sigmoid_focal_loss, masks [8, 3, 1024, 1024] bf16, bool targets": masks,
    "softmax_focal_loss, class_dim=1, [4, 19, 512, 512]": class_axis_1,
    "pyramid of one image, 80 classes": pyramids,
}


def check(name: str, steps: dict[str, Step], way: Way) -> None:
    """That all compute one loss."""
    found = {}
    for which, step in steps.items():
        step.once()
        found[which] = [leaf.grad for leaf in way.leaves]
    ours = next(iter(found.values()))
    for which, gradients in found.items():
        off = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(ours, gradients))
        assert off < way.error, f"{name}: {which} computes another loss, it is off by {off}"


def rows_of(name: str, seconds: float) -> list[dict[str, object]]:
    torch._dynamo.reset()
    way = WAYS[name]()
    steps: dict[str, Step] = {
        which: head.Steps(loss, way.leaves[0], leaves=way.leaves) for which, loss in way.losses.items()
    }
    check(name, steps, way)
    return head.timed(steps, seconds, 5, next(iter(steps)), case=name)


def main() -> None:
    hush()
    parser = argparse.ArgumentParser(description="Compare layouts other than rows of anchors, memory kept.")
    parser.add_argument("--csv", type=Path, help="write the rows here")
    parser.add_argument("--seconds", type=float, default=8.0, help="timed seconds per case, all ways together")
    options = parser.parse_args()
    keep_memory("bench.layouts")
    rows = [row for name in tqdm(WAYS, desc="comparing", unit="case") for row in rows_of(name, options.seconds)]
    for row in rows:
        print(f"{row['case']:66} {row['implementation']:26} {row['ms']:8.3g} ms {row['times']:6.3g}")
    write(options.csv, rows, provenance("cpu", "bench.layouts"))


if __name__ == "__main__":
    main()

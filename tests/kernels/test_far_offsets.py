# Owns: logits, maps, targets and weights whose offsets need more than 31 and 32 bits.
# Must not know: formulas: the same rows, close together, give the right answers.
#
# The tensors are reserved address space. Of the whole grid only the blocks of the first and of the last tile run, so a
# block's tiles lie all over the tensor, and only they are backed by memory: an index that wraps touches what does not
# exist.
from __future__ import annotations

import os
from collections.abc import Iterator

import focal_ext
import pytest
import torch
from cuda_host import build
from cuda_host.defects import NUMBER
from cuda_host.ops import HostOps
from far import Reserved
from focal_ext._levels import Levels
from torch import Tensor

CLASSES, WARPS, DTYPE = 80, 8, torch.bfloat16
SIZES = pytest.mark.parametrize("numel", [2**31 + 2**20, 2**32 + 2**20], ids=["2^31", "2^32"])


@pytest.fixture
def ops() -> Iterator[HostOps]:
    module = build.load("plain")
    module.plant(NUMBER[os.environ.get("CUDA_HOST_DEFECT", "none")])
    yield HostOps(module)
    module.set_only_blocks([])
    module.plant(NUMBER["none"])


def select(ops: HostOps, rows: int, tile_rows: int) -> list[slice]:
    """Runs the blocks of the first and of the last tile; returns the rows they own, from the first to the last."""
    tiles, step = -(-rows // tile_rows), WARPS * ops.module.MAX_BLOCKS
    blocks = [0, (tiles - 1) % step // WARPS]
    ops.module.set_only_blocks(blocks)
    starts = sorted(first * WARPS + step * turn for first in blocks for turn in range(-(-tiles // step)))
    return [slice(tile * tile_rows, min((tile + WARPS) * tile_rows, rows)) for tile in starts if tile < tiles]


def fill(memory: Reserved, parts: list[slice], values: Tensor) -> Tensor:
    """Backs the parts with memory and writes the values into them, one after the other."""
    for part, piece in zip(parts, values.split([p.stop - p.start for p in parts])):
        memory.open(part.start, part.stop).copy_(piece)
    return memory.tensor


def read(memory: Reserved, parts: list[slice]) -> Tensor:
    return torch.cat([memory.tensor[part] for part in parts])


def call(x: Tensor, targets: Tensor, weight: Tensor | None) -> tuple:
    return focal_ext.sigmoid_focal_loss.__wrapped__(x, targets, reduction="sum", normalizer=3.0, weight=weight).call


@SIZES
@pytest.mark.parametrize("what", ["gradient in place", "loss map", "gradient times a map", "dense targets", "weights"])
def test_every_offset_is_64_bits_wide(what: str, numel: int, ops: HostOps) -> None:
    rows = numel // CLASSES
    parts = select(ops, rows, tile_rows=32)
    near = sum(part.stop - part.start for part in parts)
    x, upstream, weight = (
        (torch.randn(near, CLASSES) * 4).to(DTYPE),
        torch.rand(near, CLASSES).to(DTYPE),
        torch.rand(near, CLASSES),
    )
    tile_is_special = (torch.arange(near) // 32 % 2 == 0) & (torch.rand(near) < 0.2)
    targets = torch.where(tile_is_special, torch.randint(-2, CLASSES, (near,)), -1)
    if what == "dense targets":
        targets = (torch.rand(near, CLASSES) < 0.1 * tile_is_special[:, None]).to(torch.uint8)

    space: list[Reserved] = []

    def far(values: Tensor) -> Tensor:
        space.append(Reserved((rows, *values.shape[1:]), values.dtype))
        return fill(space[-1], parts, values)

    far_x, far_targets = far(x), far(targets)
    far_weight, far_upstream = (
        (far(weight) if what == "weights" else None),
        (far(upstream) if what == "gradient times a map" else None),
    )
    result = {"loss map": "loss_map"}.get(what, "gradient")
    written = far(torch.full_like(x, torch.nan)) if result == "loss_map" else far_x
    ops.run(far_x, call(far_x, far_targets, far_weight), far_upstream, **{result: written})

    ops.module.set_only_blocks([])
    want = torch.full_like(x, torch.nan)
    ops.run(
        x,
        call(x, targets, weight if far_weight is not None else None),
        upstream if far_upstream is not None else None,
        **{result: want},
    )
    got = read(space[-1] if result == "loss_map" else space[0], parts)
    # Tiles of few rows are 8 rows high, so a row may stream there that is handled with care here: one rounding to 2^-8
    # apart.
    assert torch.allclose(got.float(), want.float(), rtol=2**-7, atol=1e-30)
    for memory in space:
        memory.close()


def test_more_rows_than_32_bits_can_count(ops: HostOps) -> None:
    rows = 2**32 + 2**20
    parts = select(ops, rows, tile_rows=128)
    near = sum(part.stop - part.start for part in parts)
    x, targets = (torch.randn(near, 1) * 4).to(DTYPE), torch.randint(-1, 1, (near,)).to(torch.int8)
    memory, ids = Reserved((rows, 1), DTYPE), Reserved((rows,), torch.int8)
    far_x, far_targets = fill(memory, parts, x), fill(ids, parts, targets)
    ops.run(far_x, call(far_x, far_targets, None), gradient=far_x)
    ops.module.set_only_blocks([])
    want = ops.gradient(x, *call(x, targets, None), torch.tensor(1.0))
    assert torch.allclose(read(memory, parts).float(), want.float(), rtol=2**-7, atol=1e-30)
    memory.close(), ids.close()


@SIZES
def test_scale_reaches_the_end(numel: int, ops: HostOps) -> None:
    vector, threads = 8, 256
    step = threads * vector * ops.module.MAX_SCALE_BLOCKS
    last = (numel - 1) % step // (threads * vector)
    ops.module.set_only_blocks([0, last])
    starts = sorted(block * threads * vector + step * turn for block in (0, last) for turn in range(-(-numel // step)))
    parts = [slice(start, min(start + threads * vector, numel)) for start in starts if start < numel]
    memory, values = Reserved((numel,), DTYPE), torch.randn(sum(part.stop - part.start for part in parts)).to(DTYPE)
    ops.scale_(fill(memory, parts, values), torch.tensor(3.0))
    assert torch.equal(read(memory, parts), (values.float() * 3).to(DTYPE))
    memory.close()


@SIZES
def test_every_offset_of_a_pyramid_is_64_bits_wide(numel: int, ops: HostOps) -> None:
    side, tiles_of_image = 32, 8  # 4 parts of 256 positions and 2 of 40 classes, so a block of 8 warps takes one image
    images = numel // (CLASSES * side * side)
    parts = [
        slice(p.start // tiles_of_image, p.stop // tiles_of_image)
        for p in select(ops, images * tiles_of_image, tile_rows=1)
    ]
    near = sum(part.stop - part.start for part in parts)
    x, ids = (
        (torch.randn(near, CLASSES, side, side) * 4).to(DTYPE),
        torch.where(torch.rand(near, side * side) < 0.05, torch.randint(-2, CLASSES, (near, side * side)), -1),
    )
    memory, labels, weights = (
        Reserved((images, CLASSES, side, side), DTYPE),
        Reserved((images, side * side), torch.int64),
        Reserved((images, 1), torch.float32),
    )
    weight = torch.rand(near, 1)

    def replace_by_gradient(level: Tensor, targets: Tensor, weight: Tensor) -> None:
        checked = focal_ext.sigmoid_focal_loss.__wrapped__(
            Levels([level], CLASSES), targets, reduction="sum", normalizer=3.0, weight=weight
        ).call
        ops.pyramid_gradient_([level], *checked, torch.tensor(1.0), None)

    replace_by_gradient(fill(memory, parts, x), fill(labels, parts, ids), fill(weights, parts, weight))
    ops.module.set_only_blocks([])
    replace_by_gradient(x, ids, weight)
    assert torch.equal(read(memory, parts), x)
    for space in (memory, labels, weights):
        space.close()

# Owns: pyramids to test with: maps of a head in any layout, labels, and the way of today: permute, cat, loss over rows.
# Must not know: focal_ext, what is right.
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def strided(level: Tensor) -> Tensor:
    """Neither contiguous nor channels_last."""
    return level.repeat_interleave(2, 3)[..., ::2]


def channels_last(level: Tensor) -> Tensor:
    return level.contiguous(memory_format=torch.channels_last)


LAYOUTS = {
    "contiguous": (torch.Tensor.contiguous,),
    "channels_last": (channels_last,),
    "mixed": (channels_last, torch.Tensor.contiguous),
    "neither": (strided, lambda level: level.transpose(2, 3).contiguous().transpose(2, 3)),
    "mixed with neither": (strided, torch.Tensor.contiguous, channels_last),
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Shape(NamedTuple):
    images: int = 2
    anchors: int = 3
    classes: int = 5
    sizes: Sequence[tuple[int, int]] = ((8, 11), (4, 6), (2, 3))

    @property
    def counts(self) -> list[int]:
        return [height * width * self.anchors for height, width in self.sizes]


SHAPES = {
    "everyday": Shape(),
    "one level": Shape(sizes=((6, 10),)),
    "one position": Shape(sizes=((1, 1), (1, 2), (2, 1))),
    "one anchor": Shape(anchors=1),
    "one image": Shape(images=1),
    "odd maps": Shape(sizes=((7, 9), (3, 5), (1, 1))),
    "wide map": Shape(sizes=((3, 700), (1, 513))),
    "several chunks": Shape(images=3, anchors=9, classes=7, sizes=((33, 47), (17, 24))),
    "one class": Shape(classes=1),
    "one class, one anchor": Shape(classes=1, anchors=1),
    "80 classes": Shape(classes=80, anchors=9, sizes=((9, 13), (5, 7), (3, 4))),
    "1203 classes": Shape(classes=1203, anchors=2, sizes=((5, 7), (2, 2))),
    "empty levels": Shape(sizes=((0, 6), (4, 6), (3, 0), (0, 0))),
    "all levels empty": Shape(sizes=((0, 6), (3, 0))),
    "no image": Shape(images=0),
}


def maps(shape: Shape, layout: str = "contiguous", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Tensor]:
    """Logits of N(-1, 3), some far out, in the given layout."""
    rng, ways = torch.Generator().manual_seed(seed), LAYOUTS[layout]
    levels = []
    for i, size in enumerate(shape.sizes):
        level = torch.randn(shape.images, shape.anchors * shape.classes, *size, generator=rng) * 3 - 1
        far = torch.rand(level.shape, generator=rng) < 0.02
        levels.append(ways[i % len(ways)](torch.where(far, 12 * level, level).to(dtype)))
    return levels


def labels(shape: Shape, seed: int = 1, often: float = 0.1) -> Tensor:
    """Class ids: some positive, as many ignored (-2), the background under both of its names."""
    rng = torch.Generator().manual_seed(seed)
    size = (shape.images, sum(shape.counts))
    draw, background = (
        torch.rand(size, generator=rng),
        torch.where(torch.rand(size, generator=rng) < 0.5, -1, shape.classes if shape.classes > 1 else -1),
    )
    ids = torch.where(draw < often, torch.randint(0, shape.classes, size, generator=rng), background)
    return ids.masked_fill((draw >= often) & (draw < 2 * often), -2)


def rows(levels: Sequence[Tensor], classes: int) -> Tensor:
    """As detectors do: [B, A K, H, W] of each level -> [B, anchors of all levels, K]."""
    return torch.cat(
        [
            level.permute(0, 2, 3, 1).reshape(
                level.shape[0], level.shape[2] * level.shape[3] * (level.shape[1] // classes), classes
            )
            for level in levels
        ],
        dim=1,
    )


def leaves(levels: Sequence[Tensor]) -> list[Tensor]:
    """Leaves that keep the strides."""
    return [level.detach().requires_grad_() for level in levels]

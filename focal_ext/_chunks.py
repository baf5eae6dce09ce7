# Owns: how a convolution and its loss are cut into chunks that fit a memory budget, and which rows of the input each
# chunk reads.
# Must not know: tensors, losses.
from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple


class Geometry(NamedTuple):
    """A convolution's kernel, stride and padding, each (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]

    def output(self, height: int, width: int) -> tuple[int, int]:
        """Size of the output; 0 where the padded input is smaller than the kernel."""
        sizes = zip((height, width), self.kernel, self.stride, self.padding)
        rows, columns = (max(0, (n + 2 * p - k) // s + 1) for n, k, s, p in sizes)
        return rows, columns


class Chunk(NamedTuple):
    """What is convolved at once: some anchors of some images, some rows of their output."""

    images: slice
    anchors: slice
    rows: slice


class Window(NamedTuple):
    """The rows of the input that make some rows of the output, and how many rows of padding lie above and below
    them."""

    rows: slice
    above: int
    below: int


def parts(count: int, most: int) -> Iterator[slice]:
    """[0, count) in as few parts of nearly equal length as possible, none longer than `most`."""
    pieces = -(-count // most)
    for i in range(pieces):
        yield slice(i * count // pieces, (i + 1) * count // pieces)


def chunks(images: int, anchors: int, rows: int, row_bytes: int, budget: int) -> Iterator[Chunk]:
    """The chunks of a level whose one anchor of one image makes `rows` rows of `row_bytes` bytes of logits.

    Several anchors, then several images, share a chunk while their logits fit the budget; only an anchor that exceeds
    it alone is cut into strips of rows.
    """
    if not (images and anchors and rows and row_bytes):
        return
    fit = budget // (rows * row_bytes)
    for image in parts(images, max(1, fit // anchors)):
        for anchor in parts(anchors, max(1, fit)):
            for strip in parts(rows, max(1, budget // row_bytes) if fit == 0 else rows):
                yield Chunk(image, anchor, strip)


def window(rows: slice, height: int, kernel: int, stride: int, padding: int) -> Window:
    """What these rows of the result read of an input of `height` rows."""
    first, end = rows.start * stride - padding, (rows.stop - 1) * stride - padding + kernel
    start = min(max(first, 0), height)
    stop = max(min(end, height), start)
    above = min(max(-first, 0), end - first)
    return Window(slice(start, stop), above, end - first - above - (stop - start))

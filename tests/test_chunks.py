# Owns: how a head's work is cut: all of it, once, within the budget, in as few chunks as that allows; and which input
# rows a strip reads.
# Must not know: tensors.
from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from focal_ext._chunks import Geometry, chunks, parts, window

WORK = list(itertools.product((0, 1, 2, 5), (1, 3, 9), (0, 1, 7), (1, 4, 400)))


def length(part: slice) -> int:
    return part.stop - part.start


@pytest.mark.parametrize("budget", [1, 3, 12, 100, 2500, 10**9])
def test_chunks_cover_every_anchor_row_once_within_the_budget(budget: int) -> None:
    for images, anchors, rows, row_bytes in WORK:
        seen = torch.zeros(images, anchors, rows, dtype=torch.int64)
        cut = list(chunks(images, anchors, rows, row_bytes, budget))
        for chunk in cut:
            seen[chunk.images, chunk.anchors, chunk.rows] += 1
            count = length(chunk.images) * length(chunk.anchors)
            assert count * length(chunk.rows) * row_bytes <= budget or (count, length(chunk.rows)) == (1, 1)
            if length(chunk.rows) < rows:  # strips only of an anchor that does not fit alone
                assert rows * row_bytes > budget
            if count > 1 and length(chunk.images) > 1:
                assert length(chunk.anchors) == anchors
        assert (seen == 1).all()
        if rows * anchors * images * row_bytes <= budget:
            assert len(cut) == (1 if rows * images else 0)


def test_parts_are_as_few_as_possible_and_of_nearly_equal_length() -> None:
    for count, most in itertools.product(range(30), range(1, 12)):
        lengths = [length(part) for part in parts(count, most)]
        assert sum(lengths) == count and len(lengths) == -(-count // most)
        assert not lengths or (max(lengths) <= most and max(lengths) - min(lengths) <= 1)


@pytest.mark.parametrize("kernel, stride, padding", [*itertools.product((1, 2, 3, 5), (1, 2, 3), (0, 1, 4))])
def test_a_strip_of_the_output_is_the_convolution_of_its_window(kernel: int, stride: int, padding: int) -> None:
    x, weight = torch.randn(1, 1, 7, 6, dtype=torch.float64), torch.randn(1, 1, kernel, 1, dtype=torch.float64)
    whole = F.conv2d(x, weight, None, (stride, 1), (padding, 0))
    assert tuple(whole.shape[2:]) == Geometry((kernel, 1), (stride, 1), (padding, 0)).output(7, 6)
    for start, stop in itertools.combinations(range(whole.shape[2] + 1), 2):
        view = window(slice(start, stop), 7, kernel, stride, padding)
        strip = F.pad(x[:, :, view.rows], (0, 0, view.above, view.below))
        assert strip.shape[2] == (stop - start - 1) * stride + kernel  # no row more than needed
        assert torch.allclose(
            F.conv2d(strip, weight, None, (stride, 1)), whole[:, :, start:stop], rtol=1e-14, atol=1e-14
        )


def test_a_map_smaller_than_the_kernel_has_no_output() -> None:
    assert Geometry((5, 3), (1, 1), (0, 0)).output(4, 3) == (0, 1)
    assert Geometry((3, 3), (1, 1), (1, 1)).output(0, 4) == (0, 4)

# Owns: how the CUDA kernels cut logits into tiles, over extreme shapes: a host function, no kernel runs.
# Must not know: formulas, kernels.
from __future__ import annotations

import itertools

import pytest
from bench import workloads
from test_cuda_host import FLAVOUR, module
from test_cuda_host import pytestmark as pytestmark

SHAPES = [
    (1, 1),
    (1, 7),
    (1, 8),
    (7, 1),
    (1, 2**20),
    (2**20, 1),
    (100, 12_544),
    (128, 9605),
    (1, 2**27 + 1),
    (1, 2**31 - 1),
    (2**31, 1),
    (2**36, 3),
    (201_600, 80),
    (16 * 201_600, 80),
    (201_600, 91),
    (8000, 80),
    (33_000, 80),
    (2, 1203),
    (4_000_000, 1203),
    (3, 2**33 + 5),
    (1000, 1),
    (1000, 3),
]


@pytest.mark.parametrize("shape, reads_rows", list(itertools.product(SHAPES, (True, False))), ids=str)
def test_logits_are_cut_evenly_at_16_byte_boundaries_whatever_their_rows(
    shape: tuple[int, int], reads_rows: bool
) -> None:
    rows, classes = shape
    elements, tile_rows, tiles = module(FLAVOUR).cut(rows, classes, reads_rows)
    assert workloads.cut(rows, classes, reads_rows) == (elements, tile_rows, tiles)  # bench.model simulates these tiles
    numel = rows * classes
    assert elements % 8 == 0 and 8 <= elements <= 4096
    assert (tiles - 1) * elements < numel <= tiles * elements
    assert tile_rows == 0 or tile_rows * classes == elements
    if reads_rows:  # a tile that begins inside of a row touches one more
        assert (tile_rows or -(-elements // classes) + 1) <= 128
    if not (reads_rows and elements > 120 * classes):
        assert tiles >= min(4096, numel // 8)  # a lane takes 8 logits at a time, or two times 4


def test_a_head_s_tiles_are_whole_rows_read_once() -> None:
    assert module(FLAVOUR).cut(201_600, 80, True) == (32 * 80, 32, 6300)
    assert module(FLAVOUR).cut(16 * 201_600, 80, True)[1] == 32


def test_a_flat_mask_is_shared_by_thousands_of_warps() -> None:
    assert module(FLAVOUR).cut(2**20, 1, False)[2] == 4096
    assert module(FLAVOUR).cut(100, 12_544, False)[2] >= 4096
    assert module(FLAVOUR).cut(128, 9605, True)[2] >= 4096

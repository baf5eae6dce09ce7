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


PLANES = [
    (1, 1),
    (77, 80),
    (273, 80),
    (1050, 80),
    (4100, 80),
    (16_800, 80),
    (273, 91),
    (33, 8),
    (2**28 + 1, 8),
    (2**30, 1),
]


@pytest.mark.parametrize("may_stream", (True, False))
@pytest.mark.parametrize("vector", (2, 4, 8))
@pytest.mark.parametrize("positions, classes", PLANES, ids=str)
def test_planes_of_any_size_stream_where_classes_make_whole_vectors_of_them(
    positions: int, classes: int, vector: int, may_stream: bool
) -> None:
    for images in (1, 2, 16, 1000):
        numel = images * positions * classes * 9
        cut = module(FLAVOUR).cut_planes(numel, classes, positions, vector, may_stream)
        assert workloads.cut_planes(numel, classes, positions, vector, may_stream) == cut
        in_line_log2, lines, columns, streams = cut
        in_line = 1 << in_line_log2
        assert classes % in_line == 0 and 1 <= lines <= classes // in_line
        assert columns % vector == 0 and columns <= 32 * vector
        if streams:  # every line begins at a 16-byte boundary
            assert positions * in_line % vector == 0 and lines * columns <= 16_384 + columns
        else:
            assert in_line == 1 and lines * columns <= 1024 + columns


def test_odd_levels_stream_and_others_come_first_in_short_tiles() -> None:
    assert module(FLAVOUR).cut_planes(16_128_000, 80, 273, 8, True) == (3, 10, 248, True)
    assert module(FLAVOUR).cut_planes(16_128_000, 91, 273, 8, True)[3] is False

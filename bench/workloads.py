# Owns: the calls that bench/model.py predicts, and how each is cut into the tiles of warps.
# Must not know: machine code, chips, times.
from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil, gcd

import numpy as np

WARP, WARPS, MOST_BLOCKS = 32, 8, 4096  # csrc/cuda: lanes of a warp, warps of a block, blocks of a grid
VECTOR = {"fp32": 4, "bf16": 8}  # logits of 16 bytes
SIZE = {"fp32": 4, "bf16": 2}
SHORT_DENSE_TILE = 512  # csrc/cuda/dense_stream.cuh: of at most so many logits targets are not looked through first
ANCHORS = 201_600  # of RetinaNet on 800 x 1344 pixels
PIXELS = 4 * 512 * 512  # of four images of a segmenter
LEVELS = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))


@dataclass(frozen=True)
class Special:
    """Labels that are not background: the share of tiles with any, by a tile's rows; how many rows of such a tile, in
    how many runs of neighbours; how many such tiles lie together."""

    share: dict[int, float]
    rows: float
    runs: float
    cluster: int = 2
    positive: float = 0.5  # of these rows; the others are ignored
    # Of tiles of planes by their positions: their share, and how many of a line's vectors a positive sends one by one.
    planes: dict[int, tuple[float, float]] = field(default_factory=lambda: {256: (0, 0), 128: (0, 0)})

    def touched(self, classes: int, vector: int) -> float:
        """Vectors of a warp, of so many logits, that are touched: one of a positive row, all of an ignored one."""
        ignored = self.rows * (1 - self.positive)
        by_rows = self.rows * self.positive + ignored * classes / vector + min(self.runs, ignored)
        return min(by_rows, self.rows * classes / vector + self.runs)


# Anchors matched to boxes with COCO's size statistics: 0.14 % positive, 0.26 % ignored, in clusters about the objects.
OF_ANCHORS = {8: 0.0105, 16: 0.0133, 32: 0.0189, 64: 0.0289, 128: 0.0473, 256: 0.078}
OF_PLANES = {256: (0.15, 0.012), 128: (0.107, 0.019)}
ANCHORS_AND_BOXES = Special(OF_ANCHORS, 6.7, runs=1, positive=0.35, planes=OF_PLANES)
AT_RANDOM = Special({rows: 1 - 0.98**rows for rows in (8, 16, 32, 64, 128, 256)}, 1.34, runs=1.34, cluster=1)
# 3 in 9,605; tiles of 512
SEVERAL_A_ROW = Special(dict.fromkeys((8, 16, 32, 64, 128, 256), 0.15), 1, runs=1, cluster=1)
MASKED = Special(dict.fromkeys((8, 16, 32, 64, 128, 256), 1.0), 0, runs=0)
NONE = Special(dict.fromkeys((8, 16, 32, 64, 128, 256), 0.0), 0, runs=0)
# Every pixel has a class. Of 256 neighbours in a row four differ, of 128 three: as many of the tile's vectors go one by
# one, of 19 lines.
SEGMENTED = Special(NONE.share, 0, runs=0, planes={256: (1, 4 / 19), 128: (1, 3 / 19)})
# Targets of one 1 a pixel: of 8 rows of pixels five of 19 classes' planes have any. Masks of objects with a tenth of
# the pixels, so a third of the rows.
ONE_HOT = Special(dict.fromkeys(NONE.share, 0.26), 0, runs=0)
OBJECTS = Special(dict.fromkeys(NONE.share, 0.35), 0, runs=0, cluster=8)
# Of 300 queries an image seven are matched; tiles of 512 logits touch 7.4 rows.
MATCHED = Special(dict.fromkeys((8, 16, 32, 64, 128, 256), 0.16), 1.1, runs=1.1, cluster=1, positive=1)


@dataclass(frozen=True)
class Case:
    name: str
    rows: int
    classes: int
    special: Special = ANCHORS_AND_BOXES
    loss: str = "focal"
    pyramid_images: int = 0
    levels: tuple[tuple[int, int], ...] = LEVELS  # heights and widths
    anchors: int = 9  # of a position
    groups: int = 1  # that have a loss each
    dense: bool = False
    weight: bool = False  # one number a row, equal in a tile
    target_bytes: int = 0  # of a logit
    limits: dict[tuple[str, str], float] = field(default_factory=dict)
    limit_us: bool = False  # the limit is 3 microseconds and twice the bytes' time

    @property
    def numel(self) -> int:
        return self.rows * self.classes

    def bytes(self, dtype: str) -> int:
        """That the main kernel must move: logits in, of softmax over planes twice, gradient out, targets."""
        times = 3 if self.loss == "softmax planes" else 2
        return self.numel * (times * SIZE[dtype] + self.target_bytes) + (
            0 if self.dense else (8 + 4 * self.weight) * self.rows
        )


def limits(h100_fp32: float, h100_bf16: float, h200_bf16: float) -> dict[tuple[str, str], float]:
    return {("H100 SXM", "fp32"): h100_fp32, ("H100 SXM", "bf16"): h100_bf16, ("H200", "bf16"): h200_bf16}


CASES = (
    Case("all background, 16 images", 16 * ANCHORS, 80, NONE, limits=limits(1.05, 1.08, 1.25)),
    Case("all background, one image", ANCHORS, 80, NONE, limits=limits(1.12, 1.25, 1.55)),
    Case("anchors and boxes, 16 images", 16 * ANCHORS, 80, limits=limits(1.05, 1.08, 1.25)),
    Case(
        "anchors and boxes, 16 images, weight per image",
        16 * ANCHORS,
        80,
        weight=True,
        limits=limits(1.05, 1.08, 1.25),
    ),
    Case("anchors and boxes, one image", ANCHORS, 80, limits=limits(1.12, 1.25, 1.55)),
    Case("2 % of rows at random, one image", ANCHORS, 80, AT_RANDOM, limits=limits(1.15, 1.4, 1.9)),
    Case("pyramid, 16 images", 16 * ANCHORS, 80, pyramid_images=16, limits=limits(1.15, 1.2, 1.35)),
    Case("pyramid, one image", ANCHORS, 80, pyramid_images=1, limits=limits(1.4, 1.6, 1.9)),
    Case(
        "dense 0/1 (uint8), 16 images",
        16 * ANCHORS,
        80,
        dense=True,
        target_bytes=1,
        limits=limits(1.1, 1.2, 1.4),
    ),
    Case("mask of 1 Mpx, flat", 1, 1 << 20, MASKED, dense=True, target_bytes=1, limit_us=True),
    Case("masks of 100 x 12,544", 100, 12_544, MASKED, dense=True, target_bytes=1, limit_us=True),
    Case(
        "ASL, 128 x 9,605, several labels a row",
        128,
        9_605,
        SEVERAL_A_ROW,
        loss="asymmetric",
        dense=True,
        target_bytes=1,
        limit_us=True,
    ),
    Case(
        "class axis 1, ids, 4 x 19 x 512 x 512",
        PIXELS,
        19,
        SEGMENTED,
        pyramid_images=4,
        levels=((512, 512),),
        anchors=1,
        limits=limits(1.4, 1.6, 1.9),
    ),
    Case(
        "class axis 1, dense 0/1 (uint8), 4 x 19 x 512 x 512",
        1,
        PIXELS * 19,
        ONE_HOT,
        dense=True,
        target_bytes=1,
        limits=limits(1.1, 1.2, 1.4),
    ),
    Case(
        "softmax over planes, ids, 4 x 19 x 512 x 512",
        PIXELS,
        19,
        loss="softmax planes",
        limits=limits(1.4, 1.6, 1.9),
    ),
    Case(
        "a sum for each mask (uint8), 32 x 3 x 1024 x 1024",
        96,
        1 << 20,
        OBJECTS,
        groups=96,
        dense=True,
        target_bytes=1,
        limits=limits(1.1, 1.2, 1.4),
    ),
    Case(
        "a sum for each decoder layer, ids, 6 x 16 x 300 x 80",
        6 * 16 * 300,
        80,
        MATCHED,
        groups=6,
        limit_us=True,
    ),
)


@dataclass(frozen=True)
class Tile:
    """What a warp goes through at once: `lines` of `columns` logits; no vector crosses a line."""

    lines: int
    columns: int
    labels: int
    streams: bool
    special: bool = False
    one_by_one: float = 0  # of the lines' vectors, on average

    @property
    def logits(self) -> int:
        return self.lines * self.columns


def drawn(count: int, rows: int, special: Special) -> np.ndarray:
    """Which of so many tiles are special: neighbours in clusters, as objects make them."""
    nearest = min(special.share, key=lambda r: abs(r - rows))
    return in_clusters(count, special.share[nearest], special.cluster)


def in_clusters(count: int, share: float, cluster: int) -> np.ndarray:
    starts = np.random.default_rng(0).random(ceil(count / cluster)) < share
    return np.repeat(starts, cluster)[:count]


def tiles(case: Case, dtype: str) -> list[Tile]:
    if case.loss == "softmax planes":  # a lane has a position
        return [Tile(case.classes, WARP, WARP, True)] * (case.rows // WARP)
    return pyramid_tiles(case, dtype) if case.pyramid_images else row_tiles(case)


def cut(rows: int, classes: int, reads_rows: bool, least_tiles: int = 4096) -> tuple[int, int, int]:
    """Logits of a tile, its rows or 0, and tiles, as csrc/cuda/plan.h cuts them; a test compares the two."""
    tile_rows = 128
    while tile_rows >= 8 and (tile_rows * classes > 4096 or rows // tile_rows < least_tiles):
        tile_rows //= 2
    tile_rows = tile_rows if tile_rows >= 8 and (reads_rows or tile_rows * classes >= 2048) else 0
    logits = tile_rows * classes
    if not tile_rows:
        logits = min(rows * classes // least_tiles, 4096, 127 * classes if reads_rows else 4096)
        unit = next((unit for unit in (512, 256, 128, 8) if logits >= unit), 8)
        logits = max(logits // unit * unit, 8)
    return logits, tile_rows, ceil(rows * classes / logits)


def row_tiles(case: Case) -> list[Tile]:
    """Tiles end with their group (csrc/cuda/run.cu)."""
    least_tiles = 2048 if case.dense and case.loss != "focal" and case.groups == 1 else ceil(4096 / case.groups)
    logits, rows, count = cut(case.rows // case.groups, case.classes, not case.dense, least_tiles)
    count *= case.groups
    labels = 0 if case.dense else rows or ceil(logits / case.classes)
    kinds = [Tile(1, logits, labels, True, special) for special in (False, True)]
    return [kinds[int(special)] for special in drawn(count, rows or 8, case.special)]


def pyramid_tiles(case: Case, dtype: str) -> list[Tile]:
    """Of planes [images, anchors * classes, height, width], the levels first that do not stream."""
    vector, made = VECTOR[dtype], []
    cuts = [
        (positions := height * width, *cut_planes(case.numel, case.classes, positions, vector))
        for height, width in case.levels
    ]
    for positions, in_line_log2, lines, columns, streams in sorted(cuts, key=lambda cut: cut[-1]):
        line_blocks = ceil((case.classes >> in_line_log2) / lines)
        count = case.pyramid_images * case.anchors * ceil((positions << in_line_log2) / columns) * line_blocks
        share, vectors = case.special.planes[WARP * vector]
        kinds = [Tile(lines, columns, columns, streams), Tile(lines, columns, columns, streams, True, vectors * lines)]
        # neighbours in space, and the tiles of one column's classes, are special together
        made += [kinds[int(s)] for s in in_clusters(count, share, round(2.5 * line_blocks))]
    return made


def cut_planes(
    numel: int, classes: int, positions: int, vector: int, may_stream: bool = True
) -> tuple[int, int, int, bool]:
    """Classes of a line by their logarithm, lines and columns of a tile, whether it streams, as csrc/cuda/plan.h cuts
    planes; a test compares the two."""
    in_line = vector // gcd(positions, vector)
    streams = may_stream and classes % in_line == 0 and positions * in_line < 2**31
    in_line = in_line if streams else 1
    once, twice = numel // 4096, numel // 8192
    elements = once if once < 4096 else min(max(twice, 4096), 16_384)
    elements = elements if streams and once >= 1024 else 1024
    columns = equal_parts(positions * in_line, WARP * vector, vector)
    lines = equal_parts(classes // in_line, ceil(elements / (WARP * vector if streams else columns)), 1)
    return in_line.bit_length() - 1, lines, columns, streams


def equal_parts(count: int, most: int, unit: int) -> int:
    parts = ceil(count / most)
    return ceil(ceil(count / parts) / unit) * unit


def blocks(count: int) -> int:
    return min(ceil(count / WARPS), MOST_BLOCKS)

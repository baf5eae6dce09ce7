// Owns: how a call's logits are cut into the tiles that warps take.
// Must not know: CUDA, what the kernels compute.
#pragma once
#include <stdint.h>

namespace focal_ext::cuda {

// Logits and rows of a tile, at most. 4096 logits are 32 vectors of float32 for each lane, 16 of narrower ones.
constexpr uint32_t kMaxTileElements = 4096, kMaxTileRows = 128;
// A tile begins at a multiple of 8 logits, so at a 16-byte boundary for every number of classes and every type.
constexpr uint32_t kTileUnit = 8;

// So many at least, where there are logits enough: they feed every warp of a large chip.
constexpr uint32_t kLeastTiles = 4096;

// Tiles lie one after the other in memory; each begins at a row, or anywhere where tile_rows is 0.
struct Cut {
  uint32_t elements, tile_rows;
  int64_t tiles;
};

// Rows of a tile that ends at the end of a row; 0 if even the smallest tile is too large.
inline uint32_t choose_tile_rows(int64_t rows, int64_t classes, uint32_t least_tiles = kLeastTiles) {
  uint32_t tile_rows = kMaxTileRows;
  while (tile_rows >= kTileUnit && (classes > kMaxTileElements / tile_rows || rows / tile_rows < least_tiles))
    tile_rows /= 2;
  return tile_rows >= kTileUnit ? tile_rows : 0;
}

// `reads_rows`: labels or weights come by the row, so a row in two tiles is read twice.
inline Cut cut(int64_t rows, int64_t classes, bool reads_rows, uint32_t least_tiles = kLeastTiles) {
  const int64_t numel = rows * classes;
  Cut c = {};
  c.tile_rows = choose_tile_rows(rows, classes, least_tiles);
  if (!reads_rows && c.tile_rows * classes < kMaxTileElements / 2) c.tile_rows = 0;
  int64_t elements = c.tile_rows * classes;
  if (c.tile_rows == 0) {
    elements = numel / least_tiles < kMaxTileElements ? numel / least_tiles : kMaxTileElements;
    // of k rows k + 1 are touched
    if (reads_rows && elements > (kMaxTileRows - 1) * classes) elements = (kMaxTileRows - 1) * classes;
    for (int64_t unit : {512, 256, 128, int(kTileUnit)})  // whole passes of a warp
      if (elements >= unit) {
        elements -= elements % unit;
        break;
      }
    if (elements < kTileUnit) elements = kTileUnit;
  }
  c.elements = uint32_t(elements);
  c.tiles = (numel + elements - 1) / elements;
  return c;
}

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Parts of `n` of nearly equal size, none above `most`; a size is a multiple of `unit`, which divides `most`.
inline int64_t equal_parts(int64_t n, int64_t most, int64_t unit) {
  const int64_t parts = (n + most - 1) / most;
  return rounded_up((n + parts - 1) / parts, unit);
}

// An index in a matrix of a pyramid has 31 bits, so the sum of two has 32.
constexpr int64_t kMaxIndex = int64_t(1) << 31;

// How the planes [classes, positions] of a level are cut: a line takes 2^in_line_log2 classes.
struct PlaneCut {
  uint32_t in_line_log2, tile_lines, tile_columns;
  bool streams;
};

// Logits of a tile of planes: enough tiles for every warp of a large chip, and as few readings of a label as that
// leaves. Beyond 4096 logits two rounds of all warps even out better. A tile that does not stream is short: it is slow.
inline int64_t choose_plane_elements(int64_t numel, bool streams) {
  constexpr int64_t kFewest = 1024, kMost = 16384;
  const int64_t once = numel / kLeastTiles, twice = numel / (2 * kLeastTiles);
  if (!streams || once < kFewest) return kFewest;
  return once < kMaxTileElements ? once : twice < kMaxTileElements ? kMaxTileElements : twice > kMost ? kMost : twice;
}

// `vector`: logits of 16 bytes. `numel`: of all levels. A line takes the fewest classes, of powers of 2, whose
// positions are whole vectors, if they divide all classes.
inline PlaneCut cut_planes(int64_t numel, int64_t classes, int64_t positions, int64_t vector, bool may_stream) {
  PlaneCut c = {};
  while ((positions << c.in_line_log2) % vector != 0) ++c.in_line_log2;
  const int64_t in_line = int64_t(1) << c.in_line_log2;
  c.streams = may_stream && classes % in_line == 0 && positions * in_line < kMaxIndex;
  if (!c.streams) c.in_line_log2 = 0;
  const int64_t columns = equal_parts(positions << c.in_line_log2, 32 * vector, vector);
  const int64_t elements = choose_plane_elements(numel, c.streams);
  const int64_t of_line = c.streams ? 32 * vector : columns;  // a stream takes a line's time for a part of one
  c.tile_columns = uint32_t(columns);
  c.tile_lines = uint32_t(equal_parts(classes >> c.in_line_log2, (elements + of_line - 1) / of_line, 1));
  return c;
}

}  // namespace focal_ext::cuda

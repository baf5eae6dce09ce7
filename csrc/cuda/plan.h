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

}  // namespace focal_ext::cuda

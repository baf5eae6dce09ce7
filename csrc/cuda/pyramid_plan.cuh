// Owns: the plan of a pyramid: how each level is cut into tiles.
// Must not know: what the kernels compute, launches.
#pragma once
#include "pyramid_tile.cuh"

namespace focal_ext::cuda {

inline int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Parts of `n` of nearly equal size, none above `most`; a size is a multiple of `unit`, which divides `most`.
inline int64_t equal_parts(int64_t n, int64_t most, int64_t unit) {
  const int64_t parts = (n + most - 1) / most;
  return rounded_up((n + parts - 1) / parts, unit);
}

// Logits of a tile of planes: enough tiles for every warp of a large chip, and as few readings of a label as that
// leaves.
inline int64_t choose_tile_elements(int64_t numel) {
  constexpr int64_t kTiles = 8192, kFewest = 1024, kMost = 16384;
  const int64_t wanted = numel / kTiles;
  return wanted < kFewest ? kFewest : wanted > kMost ? kMost : wanted;
}

// An index in a matrix has 31 bits, so the sum of two has 32.
constexpr int64_t kMaxIndex = int64_t(1) << 31;

template <class scalar_t>
LevelArguments<scalar_t> level_arguments(const Pyramid& p, const Level& level, uint32_t tile_rows) {
  constexpr int64_t vector = kVector<scalar_t>;
  LevelArguments<scalar_t> l = {};
  const int64_t rows = level.positions * p.anchors;
  l.inputs = static_cast<const scalar_t*>(level.inputs);
  l.gradient = static_cast<scalar_t*>(level.gradient);
  l.image_elements = rows * p.problem.classes;
  l.planes = !level.channels_last;
  l.lines = uint32_t(l.planes ? p.problem.classes : rows);
  l.columns = uint32_t(l.planes ? level.positions : p.problem.classes);
  l.matrices = count_of(l.planes ? p.anchors : 1);
  l.vectors = is_aligned(level.inputs) && is_aligned(level.gradient) &&
              (l.planes          ? level.positions
                  : p.images > 1 ? l.image_elements
                                 : 0) %
                      vector ==
                  0;
  const int64_t columns = l.planes ? equal_parts(l.columns, 32 * vector, vector) : l.columns;
  const int64_t elements = choose_tile_elements(numel(p.problem));
  l.tile_columns = count_of(columns);
  l.tile_lines = l.planes ? uint32_t(equal_parts(l.lines, (elements + columns - 1) / columns, 1)) : tile_rows;
  l.column_blocks = count_of((l.columns + columns - 1) / columns);
  l.line_blocks = count_of((int64_t(l.lines) + l.tile_lines - 1) / l.tile_lines);
  return l;
}

template <class scalar_t>
int64_t tiles_of(const LevelArguments<scalar_t>& l, int64_t images) {
  return int64_t(l.line_blocks.value) * l.column_blocks.value * l.matrices.value * images;
}

}  // namespace focal_ext::cuda

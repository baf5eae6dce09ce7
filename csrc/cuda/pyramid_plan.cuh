// Owns: the plan of a pyramid: how each level is cut into tiles.
// Must not know: what the kernels compute, launches.
#pragma once
#include "pyramid_tile.cuh"

namespace focal_ext::cuda {

template <class scalar_t>
LevelArguments<scalar_t> level_arguments(const Pyramid& p, const Level& level, uint32_t tile_rows, bool may_stream) {
  constexpr int64_t vector = kVector<scalar_t>;
  LevelArguments<scalar_t> l = {};
  const int64_t rows = level.positions * p.anchors;
  l.inputs = static_cast<const scalar_t*>(level.inputs);
  l.gradient = static_cast<scalar_t*>(level.gradient);
  l.image_elements = rows * p.problem.classes;
  l.planes = !level.channels_last;
  l.positions = count_of(level.positions);
  const bool aligned = is_aligned(level.inputs) && is_aligned(level.gradient);
  if (l.planes) {
    const PlaneCut c = cut_planes(numel(p.problem), p.problem.classes, level.positions, vector, may_stream && aligned);
    l.in_line_log2 = c.in_line_log2;
    l.lines = uint32_t(p.problem.classes >> c.in_line_log2);
    l.columns = uint32_t(level.positions << c.in_line_log2);
    l.matrices = count_of(p.anchors);
    l.vectors = c.streams;
    l.tile_lines = c.tile_lines;
    l.tile_columns = count_of(c.tile_columns);
  } else {
    l.lines = uint32_t(rows);
    l.columns = uint32_t(p.problem.classes);
    l.matrices = count_of(1);
    l.vectors = may_stream && aligned && (p.images == 1 || l.image_elements % vector == 0);
    l.tile_lines = tile_rows;
    l.tile_columns = count_of(l.columns);
  }
  l.column_blocks = count_of((int64_t(l.columns) + l.tile_columns.value - 1) / l.tile_columns.value);
  l.line_blocks = count_of((int64_t(l.lines) + l.tile_lines - 1) / l.tile_lines);
  return l;
}

template <class scalar_t>
int64_t tiles_of(const LevelArguments<scalar_t>& l, int64_t images) {
  return int64_t(l.line_blocks.value) * l.column_blocks.value * l.matrices.value * images;
}

}  // namespace focal_ext::cuda

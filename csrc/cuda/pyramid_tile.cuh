// Owns: the argument of the pyramid kernel, and its tile: the part of one level of one image that one warp owns.
// Must not know: which formula runs over it.
//
// A level lies in memory as matrices of lines and columns. In planes there is one matrix for each anchor of an image,
// with a line for each class and a column for each position; with channels last one for each image, with a line for
// each anchor and a column for each class. Where a plane's positions are no whole vectors, a line takes as many classes
// as make it whole vectors: every line then begins at a 16-byte boundary. Of a column and a line together follow
// position and class.
#pragma once
#include "arguments.cuh"

namespace focal_ext::cuda {

constexpr uint32_t kMaxLevels = 16;  // of one launch: kernels take 4 KB of arguments

// Labels of a tile: one for each column of planes, of which a lane owns 16 bytes, or for each row.
template <class scalar_t>
constexpr uint32_t kMaxLabels = 32 * kVector<scalar_t> > int(kMaxTileRows) ? 32 * kVector<scalar_t> : kMaxTileRows;

template <class scalar_t>
struct LevelArguments {
  const scalar_t* inputs;  // may be `gradient` itself
  scalar_t* gradient;
  int64_t first_row;  // among an image's anchors
  int64_t image_elements;
  uint32_t first_tile;
  uint32_t lines, columns;  // of a matrix
  uint32_t tile_lines;
  Count tile_columns;
  Count line_blocks, column_blocks, matrices;  // tiles along a matrix, and matrices of an image
  Count positions;  // of planes
  uint32_t in_line_log2;  // of the classes of a line of planes
  bool planes;
  bool vectors;  // every line of a tile of planes, every full tile of rows begins at a 16-byte boundary
};

template <class scalar_t>
struct PyramidArguments {
  using acc_t = acc_of<scalar_t>;
  Arguments<scalar_t> common;  // without what a level has of its own; `gradient` tells whether it is wanted
  Ids ids;
  const acc_t* scores;  // of the ids' classes; null: 1
  CommonIds common_ids;
  int64_t image_rows;
  uint32_t tiles, level_count;
  bool weight_per_image;
  acc_t positive_ratio;  // alpha of a positive over that of a negative
  LevelArguments<scalar_t> levels[kMaxLevels];
};

// 64-bit bases, 32-bit indices inside. Rows are those of the targets.
struct PyramidTile {
  int64_t first_element, first_row, image;  // the row of planes is that of the matrix's first column
  uint32_t first_line, first_column, lines, columns;
  uint32_t labels;  // one for each column of planes, else for each line
};

// Where the i-th label of a tile stands: its row, of planes also which of a line's classes its column has.
struct LabelPlace {
  int64_t row;
  uint32_t in_line;
};

template <class scalar_t>
__device__ LabelPlace label_place(const LevelArguments<scalar_t>& level, const PyramidTile& tile, uint32_t i) {
  if (!level.planes) return {tile.first_row + i, 0};
  const uint32_t column = tile.first_column + i,
                 in_line = level.in_line_log2 == 0 ? 0 : quotient(column, level.positions);
  const uint32_t position = column - in_line * level.positions.value;
  return {tile.first_row + int64_t(position) * level.matrices.value, in_line};
}

template <class scalar_t>
__device__ PyramidTile tile_at(
    const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level, uint32_t index) {
  index -= level.first_tile;
  // the classes of one position are neighbours: they share its label
  const uint32_t matrix_and_columns = quotient(index, level.line_blocks);
  const uint32_t columns_and_image = quotient(matrix_and_columns, level.matrices),
                 image = quotient(columns_and_image, level.column_blocks);
  const uint32_t line = (index - matrix_and_columns * level.line_blocks.value) * level.tile_lines;
  const uint32_t matrix = matrix_and_columns - columns_and_image * level.matrices.value;
  const uint32_t column = (columns_and_image - image * level.column_blocks.value) * level.tile_columns.value;
  const auto at_most = [](uint32_t wanted, uint32_t left) { return wanted < left ? wanted : left; };
  PyramidTile t;
  t.image = image;
  t.lines = at_most(level.tile_lines, level.lines - line);
  t.columns = at_most(level.tile_columns.value, level.columns - column);
  t.first_element = image * level.image_elements + (int64_t(matrix) * level.lines + line) * level.columns + column;
  t.first_line = line;
  t.first_column = column;
  t.labels = level.planes ? t.columns : t.lines;
  t.first_row = image * a.image_rows + level.first_row + (level.planes ? matrix : line);
  return t;
}

}  // namespace focal_ext::cuda

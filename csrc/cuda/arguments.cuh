// Owns: the argument of the focal kernel, and the tile: the neighbouring rows that one warp owns.
// Must not know: which formula runs over it.
#pragma once
#include "normaliser.cuh"
#include "vector.cuh"

namespace focal_ext::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr uint32_t kMaxTileRows = 128;
// A tile is a multiple of 8 rows, so it starts at a 16-byte boundary for every number of classes and every type.
constexpr uint32_t kMinTileRows = 8;

// What the hot loop does with a tile without special elements. Anything else takes the careful path, and so does all of a steep gamma.
enum class Flow : int {
  careful,
  loss,
  gradient,  // and loss
  loss_map,  // loss map
  chain      // gradient times grad_output per element
};

template <class scalar_t>
struct Arguments {
  using acc_t = acc_of<scalar_t>;

  const scalar_t* inputs;  // may be `gradient` itself: never read through the read-only cache
  scalar_t* gradient;
  scalar_t* loss_map;
  acc_t* partials;  // one per block, or null

  int64_t rows;
  uint32_t tiles, tile_rows;
  uint32_t classes, classes_reciprocal;  // floor((2^32 - 1) / classes)
  Flow flow;

  acc_t alpha_positive, alpha_negative;
  const acc_t* alpha;
  const acc_t* weight;
  int64_t weight_row_stride, weight_class_stride;

  Normaliser<acc_t> normaliser;
  const acc_t* upstream;               // one factor for the whole gradient, or null
  const scalar_t* upstream_per_element;  // or null
};

// One tile, seen by one warp: 64-bit base, 32-bit indices inside.
struct Tile {
  int64_t first_row, first_element;
  uint32_t rows, elements;
};

template <class scalar_t>
__device__ Tile tile_at(const Arguments<scalar_t>& a, uint32_t index) {
  const int64_t first_row = int64_t(index) * a.tile_rows;
  const uint32_t rows = a.rows - first_row < a.tile_rows ? uint32_t(a.rows - first_row) : a.tile_rows;
  const int64_t first_element = first_row * a.classes;
  return {first_row, FOCAL_EXT_PLANTED(index_32) ? uint32_t(first_element) : first_element, rows, rows * a.classes};
}

// Whole vectors at 16-byte boundaries, for logits and for targets of any size: all tiles but the last have them.
template <class scalar_t>
__device__ bool may_stream(const Arguments<scalar_t>& a, const Tile& tile) {
  return a.flow != Flow::careful && tile.elements % kMinTileRows == 0;
}

// The factor of the whole gradient, in every lane of the calling warp.
template <class scalar_t>
__device__ acc_of<scalar_t> gradient_factor(const Arguments<scalar_t>& a) {
  if (!a.gradient) return 0;
  return (a.upstream ? *a.upstream : acc_of<scalar_t>(1)) / divisor(a.normaliser);
}

}  // namespace focal_ext::cuda

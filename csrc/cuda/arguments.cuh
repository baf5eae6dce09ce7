// Owns: the argument of the focal kernel, and the tile: the neighbouring logits that one warp owns.
// Must not know: which formula runs over it.
#pragma once
#include "batch.cuh"
#include "plan.h"
#include "vector.cuh"

namespace focal_ext::cuda {

constexpr int kThreads = 256, kWarps = kThreads / 32;

// What the hot loop writes. `careful`: none runs, as for a steep gamma; which tiles it takes otherwise, one_tile
// (focal.cuh) decides.
enum class Flow : int {
  careful,
  loss,
  gradient,  // and loss
  loss_map,  // loss map
  chain      // gradient times grad_output per element
};

// What multiplies a tile's terms, for which a kernel has loops: two kinds of them in one kernel would not fit 64
// registers.
enum class Factors : int { one, rows, classes };

template <class scalar_t>
struct Arguments {
  using acc_t = acc_of<scalar_t>;

  const scalar_t* inputs;  // may be `gradient` itself: never read through the read-only cache
  scalar_t* gradient;
  scalar_t* loss_map;
  acc_t* partials;  // one per block, of groups one per tile; or null

  int64_t numel;  // of a group
  Batch<acc_t> batch;
  uint32_t tiles, tile_elements, tile_rows;  // the latter 0 where tiles begin anywhere
  uint32_t classes, classes_reciprocal;      // floor((2^32 - 1) / classes)
  uint64_t classes_wide_reciprocal;          // floor((2^64 - 1) / classes)
  Flow flow;
  Factors factors;

  acc_t alpha_positive, alpha_negative;  // the latter 1 beside `alpha`
  const acc_t* alpha;
  const acc_t* weight;
  int64_t weight_row_stride, weight_class_stride;

  Normaliser<acc_t> normaliser;
  const acc_t* upstream;               // one factor for the whole gradient, or null
  const scalar_t* upstream_per_element;  // or null
};

// n / d, by the reciprocal rounded down: the product is at most one too small.
inline __device__ int64_t quotient(int64_t n, uint32_t d, uint64_t reciprocal) {
  const uint64_t q = __umul64hi(uint64_t(n), reciprocal);
  return int64_t(uint64_t(n) - q * d >= d ? q + 1 : q);
}

// Row of element i, counted from the beginning of row 0. Likewise.
inline __device__ uint32_t row_of(uint32_t i, uint32_t classes, uint32_t reciprocal) {
  const uint32_t row = __umulhi(i, reciprocal);
  return i - row * classes >= classes ? row + 1 : row;
}

// One tile, seen by one warp: 64-bit base, 32-bit indices inside. Its rows are those it touches, the first from its
// `offset`-th logit on.
struct Tile {
  int64_t first_row, first_element;
  uint32_t offset, rows, elements;
};

struct Place {
  uint32_t row, c;
};

template <class scalar_t>
__device__ Place place_of(const Arguments<scalar_t>& a, const Tile& tile, uint32_t i) {
  const uint32_t row = row_of(tile.offset + i, a.classes, a.classes_reciprocal);
  return {row, tile.offset + i - row * a.classes};
}

template <class scalar_t>
__device__ Tile tile_at(const Arguments<scalar_t>& a, uint32_t index, uint32_t group) {
  index -= group * a.batch.tiles.value;
  Tile t;
  t.first_element = int64_t(index) * a.tile_elements;
  t.elements = a.numel - t.first_element < a.tile_elements ? uint32_t(a.numel - t.first_element) : a.tile_elements;
  t.first_row =
      a.tile_rows ? int64_t(index) * a.tile_rows : quotient(t.first_element, a.classes, a.classes_wide_reciprocal);
  t.offset = a.tile_rows ? 0 : uint32_t(t.first_element - t.first_row * a.classes);
  t.rows = row_of(t.offset + t.elements - 1, a.classes, a.classes_reciprocal) + 1;
  t.first_element += group * a.numel;
  t.first_row += group * a.batch.rows;
  return t;
}

// The factor of the whole gradient, in every lane of the calling warp.
template <class scalar_t>
__device__ acc_of<scalar_t> gradient_factor(const Arguments<scalar_t>& a) {
  if (!a.gradient) return 0;
  return (a.upstream ? *a.upstream : acc_of<scalar_t>(1)) / divisor(a.normaliser);
}

}  // namespace focal_ext::cuda

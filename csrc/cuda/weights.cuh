// Owns: what a warp keeps in shared memory of its tile, and how the weights of a tile's rows enter its stream.
// Must not know: logits, flows, losses.
#pragma once
#include "coefficients.cuh"

namespace focal_ext::cuda {

template <class acc_t, Factors factors>
struct OfWarp {
  Tile tile;  // as `factor`
  int labels[kMaxTileRows];
  float logits[kMaxTileRows];                                       // of positives
  // of rows, 0 of those that count as nothing, and one 0 more
  float weights[factors == Factors::rows ? kMaxTileRows + 1 : 1];
  acc_t factor;                                                     // not in a register: the hot loop needs all 64
  float scale;                                                      // likewise: what multiplies all values of a tile
};

enum class Weights : int {
  one,   // all rows have it: in `scale`
  rows,  // differ: in `weights`
  no_stream
};

// Whole warp: leaves scale and weights.
template <class scalar_t, Factors factors>
__device__ Weights read_weights(
    const Arguments<scalar_t>& a, uint32_t lane, OfWarp<float, factors>& own, bool has_ids) {
  const bool by_row = a.weight && !(factors == Factors::classes && a.weight_class_stride != 0);
  const float common = by_row ? weight_at(a, own.tile, 0, 0) : 1.f;
  bool equal = true, finite = true;
  if (by_row) {
#pragma unroll 1
    for (uint32_t row = lane; row < own.tile.rows; row += 32) {
      const float weight = weight_at(a, own.tile, row, 0);
      equal &= weight == common;
      if constexpr (factors == Factors::rows) {
        const bool counts = !has_ids || (own.labels[row] != kIgnored && own.labels[row] != kBad);
        own.weights[row] = counts ? weight : 0.f;
        // times a gradient of 0 it is 0
        finite &= fabsf(own.weights[row] * (a.alpha_negative * own.factor)) < INFINITY;
      }
    }
  }
  const bool one = __ballot_sync(~0u, !equal) == 0;
  if (lane == 0) own.scale = a.alpha_negative * (one ? common : 1.f);
  if constexpr (factors == Factors::rows)
    if (lane == 0) own.weights[own.tile.rows] = 0;
  __syncwarp();  // other lanes read them
  if (one) return Weights::one;
  return factors == Factors::rows && __ballot_sync(~0u, !finite) == 0 ? Weights::rows : Weights::no_stream;
}

// Whole block.
template <class scalar_t>
__device__ void fill_class_slots(float* slots, const Arguments<scalar_t>& a) {
  fill_class_slots(slots, a.classes, [&](uint32_t c) {
    const float alpha = a.alpha ? 1 - a.alpha[c] : 1.f;
    return a.weight && a.weight_class_stride != 0 ? alpha * a.weight[c * a.weight_class_stride] : alpha;
  });
  __syncthreads();
}

}  // namespace focal_ext::cuda

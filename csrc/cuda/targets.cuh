// Owns: where an element's target comes from, and whether a tile holds nothing but negatives.
// Must not know: how logits are stored or how results are reduced.
#pragma once
#include <type_traits>

#include "../losses/sigmoid_focal.h"
#include "arguments.cuh"

namespace focal_ext::cuda {

// An element's contribution before weight: value, and derivative by the logit, times its alpha.
template <class acc_t>
using Term = ValueAndGradient<acc_t>;

// alpha for a target 1 and for a target 0 in column `c`.
template <class acc_t>
struct Alpha {
  acc_t positive, negative;
};
template <class scalar_t>
__device__ Alpha<acc_of<scalar_t>> alpha_of(const Arguments<scalar_t>& a, uint32_t c) {
  if (!a.alpha) return {a.alpha_positive, a.alpha_negative};
  return {a.alpha[c], 1 - a.alpha[c]};
}

// A logit whose term has a coefficient of exactly 0 counts 0 even where the loss is infinite. NaN stays.
template <class acc_t>
__device__ acc_t finite_if(bool zero_coefficient, acc_t x) {
  constexpr acc_t large = acc_t(1e30);
  if (zero_coefficient) x = x > large ? large : x < -large ? -large : x;
  return x;
}

// Class ids: one label a row, interpreted once per tile and kept in shared memory.
struct IdTargets {
  static constexpr bool is_dense = false;
  Ids ids;

  // Whole warp. `labels` has a.tile_rows slots of this warp's own.
  template <class scalar_t>
  __device__ bool all_negative(const Arguments<scalar_t>&, const Tile& tile, uint32_t lane, int* labels) const {
    bool special = false;
    for (uint32_t row = lane; row < tile.rows; row += 32) {
      const int label = label_at(ids, tile.first_row + row);
      labels[row] = label;
      special |= label != kBackground;
    }
    if (!FOCAL_EXT_PLANTED(unordered_labels)) __syncwarp();  // the careful path reads what other lanes wrote; a ballot orders no memory
    return __ballot_sync(~0u, special) == 0;
  }

  static __device__ bool is_ignored(const int* labels, uint32_t row) { return labels[row] == kIgnored; }

  template <class Math, class scalar_t, class Modulator, class acc_t>
  __device__ Term<acc_t> term(const Arguments<scalar_t>& a, const Tile&, uint32_t, uint32_t row, uint32_t c, acc_t x, const int* labels,
                              const Modulator& modulator) const {
    const int label = labels[row];
    const bool positive = label == int(c);
    const Alpha<acc_t> alpha = alpha_of(a, c);
    const acc_t coefficient = positive ? alpha.positive : alpha.negative;
    const Term<acc_t> t = sigmoid_focal_hard<Math>(finite_if(coefficient == 0, positive ? -x : x), modulator);
    if (label == kBad) return {acc_t(NAN), acc_t(NAN)};
    return {coefficient * t.value, (positive ? -coefficient : coefficient) * t.gradient};
  }
};

// Dense: one target a logit, stored as target_t.
template <class target_t>
struct DenseTargets {
  static constexpr bool is_dense = true;
  const target_t* targets;

  static __device__ uint64_t any_bit(uint64_t words) { return words; }
  static __device__ uint64_t any_bit(ulonglong2 words) { return words.x | words.y; }

  // Whole warp. Targets of an all-negative tile are read here only, those of any other tile again from the cache.
  template <class scalar_t>
  __device__ bool all_negative(const Arguments<scalar_t>& a, const Tile& tile, uint32_t lane, int*) const {
    if (!may_stream(a, tile)) return false;
    using words_t = std::conditional_t<sizeof(target_t) == 1, uint64_t, ulonglong2>;  // a tile of bytes is aligned to 8, not to 16
    constexpr uint32_t size = sizeof(words_t) / sizeof(target_t);
    const words_t* vectors = reinterpret_cast<const words_t*>(targets + tile.first_element);
    uint64_t special = 0;
    for (uint32_t i = lane; i < tile.elements / size; i += 32) special |= any_bit(vectors[i]);
    return __ballot_sync(~0u, special != 0) == 0;
  }

  static __device__ bool is_ignored(const int*, uint32_t) { return false; }

  template <class Math, class scalar_t, class Modulator, class acc_t>
  __device__ Term<acc_t> term(const Arguments<scalar_t>& a, const Tile& tile, uint32_t i, uint32_t, uint32_t c, acc_t x, const int*,
                              const Modulator& modulator) const {
    const acc_t t = widen(targets[tile.first_element + i]);
    const Alpha<acc_t> alpha = alpha_of(a, c);
    const acc_t coefficient = alpha.positive * t + alpha.negative * (1 - t);
    const Term<acc_t> result = sigmoid_focal_soft<Math>(finite_if(coefficient == 0, x), t, t, modulator);
    return {coefficient * result.value, coefficient * result.gradient};
  }
};

}  // namespace focal_ext::cuda

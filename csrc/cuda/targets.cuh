// Owns: where an element's target comes from, and whether a tile holds nothing but negatives.
// Must not know: how logits are stored or how results are reduced.
#pragma once
#include <type_traits>

#include "../losses/careful_float.h"
#include "../losses/list.h"
#include "arguments.cuh"

namespace focal_ext::cuda {

// An element's contribution before weight: value, and derivative by the logit, times its alpha.
template <class acc_t>
using Term = ValueAndGradient<acc_t>;

template <class acc_t>
__device__ Term<acc_t> scaled(Term<acc_t> t, acc_t value, acc_t gradient) {
  return {value * t.value, gradient * t.gradient};
}

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

template <class scalar_t>
__device__ acc_of<scalar_t> weight_at(const Arguments<scalar_t>& a, const Tile& tile, uint32_t row, uint32_t c) {
  return a.weight[(tile.first_row + row) * a.weight_row_stride + c * a.weight_class_stride];
}

// A logit whose term has a coefficient of exactly 0 counts 0 even where the loss is infinite. NaN stays.
template <class acc_t>
__device__ acc_t finite_if(bool zero_coefficient, acc_t x) {
  constexpr acc_t large = acc_t(1e30);
  if (zero_coefficient) x = x > large ? large : x < -large ? -large : x;
  return x;
}

// The term of a hard label, of a loss that mirrors.
template <class Math, class acc_t, class Loss>
__device__ Term<acc_t> hard_term(bool positive, acc_t x, acc_t factor, const Loss& loss) {
  return scaled(loss.template negative<Math>(finite_if(factor == 0, positive ? -x : x)), factor, positive ? -factor : factor);
}

// Whether p^gamma takes an exponential in the negatives of a loss, as far as is known.
template <class Loss>
constexpr bool has_any_power = true;
template <class Loss>
  requires requires { &Loss::modulator; }
constexpr bool has_any_power<Loss> = std::is_same_v<decltype(Loss::modulator), AnyModulator>;

// Whether they need the stream's single grade for every type of logits: also where the gradient multiplies q and nothing hides its error.
template <class Loss>
constexpr bool is_exact = has_any_power<Loss>;
template <class Modulator, class Positive>
constexpr bool is_exact<Asymmetric<Modulator, Positive, true>> = true;

// Class ids: one label a row, interpreted once per tile and kept in shared memory; and maybe a score a row.
template <class acc_t>
struct IdTargets {
  Ids ids;
  const acc_t* scores;  // the target of a positive id's class, or null: 1

  static __device__ bool has_ids() { return true; }
  __device__ const IdTargets& ids_or_none() const { return *this; }

  // Whole warp. `labels` has kMaxTileRows slots of this warp's own.
  template <class scalar_t>
  __device__ bool has_special(const Arguments<scalar_t>&, const Tile& tile, uint32_t lane, int* labels) const {
    bool special = false;
    for (uint32_t row = lane; row < tile.rows; row += 32) {
      const int label = label_at(ids, tile.first_row + row);
      labels[row] = label;
      special |= label != kBackground;
    }
    if (!FOCAL_EXT_PLANTED(unordered_labels)) __syncwarp();  // other lanes read them; a ballot orders no memory
    return __ballot_sync(~0u, special) != 0;
  }

  static __device__ bool is_ignored(const Tile&, uint32_t, const int* labels, uint32_t row) { return labels[row] == kIgnored; }

  template <class Math, class scalar_t, class Loss>
  __device__ Term<acc_t> term(
      const Arguments<scalar_t>& a, const Tile& tile, uint32_t, uint32_t row, uint32_t c, acc_t x, const int* labels, const Loss& loss) const {
    const int label = labels[row];
    const bool positive = label == int(c);
    const Alpha<acc_t> alpha = alpha_of(a, c);
    if (label == kBad) return {acc_t(NAN), acc_t(NAN)};
    if constexpr (Loss::mirrors) {
      return hard_term<Math>(positive, x, positive ? alpha.positive : alpha.negative, loss);
    } else {
      const acc_t t = !positive ? acc_t(0) : scores ? scores[tile.first_row + row] : acc_t(1);
      const acc_t factor = Loss::Factor::of(t, alpha.positive, alpha.negative), z = finite_if(factor == 0, x);
      return scaled(positive ? loss.template positive<Math>(z, t) : loss.template negative<Math>(z), factor, factor);
    }
  }
};

// Of as many targets as a vector has logits.
template <int bytes>
struct TargetWords {
  using part_t = std::conditional_t<bytes >= 16, uint4, std::conditional_t<bytes == 8, uint2, uint32_t>>;  // a tile of bytes is aligned to 8
  uint32_t words[bytes / 4];

  static __device__ TargetWords at(const void* from) {
    TargetWords t;
#pragma unroll
    for (int i = 0; i < bytes / int(sizeof(part_t)); ++i) {
      const part_t part = static_cast<const part_t*>(from)[i];
      memcpy(t.words + i * (sizeof(part_t) / 4), &part, sizeof(part_t));
    }
    return t;
  }
};

// Dense: one target a logit, of the type that the whole grid's have.
template <class scalar_t>
struct DenseTargets {
  using acc_t = acc_of<scalar_t>;
  const void* targets;
  Target type;
  acc_t ignored;  // NaN: none

  // f(targets as what they are)
  template <class F>
  __device__ auto as_stored(F f) const {
    if (type == Target::dense_u8) return f(static_cast<const uint8_t*>(targets));
    if constexpr (!std::is_same_v<scalar_t, acc_t>)
      if (type == Target::dense_acc) return f(static_cast<const acc_t*>(targets));
    return f(static_cast<const scalar_t*>(targets));
  }

  // Of a lane's vectors, bit k: whether the k-th has a target that is not 0; and whether all targets are 0 or 1.
  struct Found {
    uint32_t marks;
    bool hard;
  };

  // A number of bits that is 0 in a 0 and a 1 alone. A 1 is 2^n - 1 times its lowest bit.
  template <class target_t>
  static __device__ uint32_t bits_of_others(uint32_t word) {
    if constexpr (sizeof(target_t) == 1) return word & 0xfefefefeu;
    else if constexpr (std::is_same_v<target_t, __half>) return word ^ (word & 0x04000400u) * 0xf;
    else return word ^ (word & (sizeof(target_t) == 2 ? 0x00800080u : 0x00800000u)) * 0x7f;
  }

  template <class target_t>
  static __device__ Found marks_in(const target_t* first, uint32_t vectors, uint32_t lane) {
    using Words = TargetWords<int(sizeof(target_t)) * kVector<scalar_t>>;
    uint32_t marks = 0, mark = 1, others = 0;
#pragma unroll 4
    for (uint32_t v = lane; v < vectors; v += 32) {
      const Words t = Words::at(first + v * kVector<scalar_t>);
      uint32_t any = 0;
#pragma unroll
      for (uint32_t word : t.words) any |= word, others |= bits_of_others<target_t>(word);
      if (any) marks |= mark;
      mark <<= 1;
    }
    return {marks, others == 0};
  }

  static __device__ bool has_ids() { return false; }
  static __device__ bool has_special(const Arguments<scalar_t>&, const Tile&, uint32_t, int*) { return false; }
  __device__ const DenseTargets& dense_or_none() const { return *this; }

  // Of the calling lane's vectors. They are read again, from the cache.
  __device__ Found find(const Tile& tile, uint32_t vectors, uint32_t lane) const {
    return as_stored([&](auto* t) { return marks_in(t + tile.first_element, vectors, lane); });
  }

  __device__ acc_t target_at(const Tile& tile, uint32_t i) const {
    return as_stored([&](auto* stored) { return acc_t(widen(stored[tile.first_element + i])); });
  }
  __device__ bool is_ignored(const Tile& tile, uint32_t i, const int*, uint32_t) const { return target_at(tile, i) == ignored; }

  template <class Math, class Loss>
  __device__ Term<acc_t> term(const Arguments<scalar_t>& a, const Tile& tile, uint32_t i, uint32_t, uint32_t c, acc_t x, const int*, const Loss& loss) const {
    const acc_t t = target_at(tile, i);
    if (type == Target::dense_u8 && t > 1) return {acc_t(NAN), acc_t(NAN)};
    const Alpha<acc_t> alpha = alpha_of(a, c);
    const acc_t factor = Loss::Factor::of(t, alpha.positive, alpha.negative);
    return scaled(loss.template dense<Math>(finite_if(factor == 0, x), t), factor, factor);
  }
};

// Either, told at run time: fewer kernels, where both fit the same registers.
template <class scalar_t>
struct EitherTargets {
  bool is_dense;
  IdTargets<acc_of<scalar_t>> ids;
  DenseTargets<scalar_t> dense;

  __device__ bool has_ids() const { return !is_dense; }
  __device__ const IdTargets<acc_of<scalar_t>>& ids_or_none() const { return ids; }
  __device__ const DenseTargets<scalar_t>& dense_or_none() const { return dense; }
  __device__ bool has_special(const Arguments<scalar_t>& a, const Tile& tile, uint32_t lane, int* labels) const {
    return !is_dense && ids.has_special(a, tile, lane, labels);
  }
};

}  // namespace focal_ext::cuda

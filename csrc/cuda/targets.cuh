// Owns: where an element's target comes from, and whether a tile holds nothing but negatives.
// Must not know: how logits are stored or how results are reduced.
#pragma once
#include <type_traits>

#include "../losses/careful_float.h"
#include "../losses/focal_negatives.h"
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

// Writes what an element gives, `t` without weight and upstream factors; returns its loss.
template <class scalar_t, class acc_t>
__device__ acc_t finished(const Arguments<scalar_t>& a, const Tile& tile, uint32_t i, uint32_t row, uint32_t c,
    Term<acc_t> t, bool ignored, acc_t factor) {
  const int64_t element = tile.first_element + i;
  if (a.weight) {
    const acc_t weight = weight_at(a, tile, row, c);
    t.value *= weight;
    t.gradient *= weight;
  }
  if (a.upstream_per_element) t.gradient *= widen(a.upstream_per_element[element]);
  t.gradient *= factor;
  if (ignored) t = {0, 0};  // whatever the logit, the weight and the factor are
  if (a.loss_map) a.loss_map[element] = narrow<scalar_t>(t.value);
  if (a.gradient) a.gradient[element] = narrow<scalar_t>(t.gradient);
  return t.value;
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
  return scaled(
      loss.template negative<Math>(finite_if(factor == 0, positive ? -x : x)), factor, positive ? -factor : factor);
}

// Whether p^gamma takes an exponential in the negatives of a loss, as far as is known.
template <class Loss>
constexpr bool has_any_power = true;
template <class Loss>
  requires requires { &Loss::modulator; }
constexpr bool has_any_power<Loss> = std::is_same_v<decltype(Loss::modulator), AnyModulator>;

// Whether they need the stream's single grade for every type of logits: also where the gradient multiplies q and
// nothing hides its error.
template <class Loss>
constexpr bool is_exact = has_any_power<Loss>;
template <class Modulator, class Positive>
constexpr bool is_exact<Asymmetric<Modulator, Positive, true>> = true;

// What multiplies a term; `named`: of the class that a class id names.
template <class Loss, class acc_t>
__device__ acc_t factor_of(const Loss& loss, acc_t t, bool named, const Alpha<acc_t>& alpha) {
  if constexpr (requires { loss.factor(t, named, t, t); }) return loss.factor(t, named, alpha.positive, alpha.negative);
  else
    return named ? Loss::Factor::of_named(t, alpha.positive, alpha.negative)
                 : Loss::Factor::of(t, alpha.positive, alpha.negative);
}

// Whether a loss that mirrors takes scores: of others that it has a kernel for FocalNegatives takes them.
template <class Loss>
constexpr bool may_be_scored = true;
template <class Modulator>
constexpr bool may_be_scored<SigmoidFocal<Modulator>> = std::is_same_v<Modulator, ZeroOrOneModulator>;

template <class Loss>
constexpr bool is_smoothed = false;
template <class Modulator>
constexpr bool is_smoothed<SmoothedSigmoidFocal<Modulator>> = true;

// Of a pair's score, and of rare dense targets: a function of its own, which keeps the library below its limit.
template <class Math, class Loss, class acc_t>
FOCAL_EXT_NO_INLINE Term<acc_t> scored_term(acc_t x, acc_t score, Alpha<acc_t> alpha, const Loss& loss) {
  const acc_t factor = factor_of(loss, score, true, alpha);
  return scaled(loss.template dense<Math>(finite_if(factor == 0, x), score), factor, factor);
}

// Of an element whose class the row's id names (`positive`) or not. `score`: the row's, or null.
template <class Math, class Loss, class acc_t>
__device__ Term<acc_t> id_term(
    bool positive, acc_t x, const acc_t* score, const Alpha<acc_t>& alpha, const Loss& loss) {
  if constexpr (Loss::mirrors) {
    if (may_be_scored<Loss> && positive && score) return scored_term<Math>(x, *score, alpha, loss);
    return hard_term<Math>(positive, x, positive ? alpha.positive : alpha.negative, loss);
  } else {
    const acc_t t = !positive ? acc_t(0) : score ? *score : acc_t(1);
    const acc_t factor = factor_of(loss, t, positive, alpha), z = finite_if(factor == 0, x);
    return scaled(positive ? loss.template positive<Math>(z, t) : loss.template negative<Math>(z), factor, factor);
  }
}

// Class ids: one label a row, interpreted once per tile and kept in shared memory; and maybe a score a row.
template <class acc_t>
struct IdTargets {
  Ids ids;
  const acc_t* scores;  // the target of a positive id's class, or null: 1

  static __device__ bool has_ids() { return true; }
  static __device__ bool streams_dense() { return false; }
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
    __syncwarp();  // other lanes read them; a ballot orders no memory
    return __ballot_sync(~0u, special) != 0;
  }

  // What an element has of its own in memory.
  static __device__ acc_t target_at(const Tile&, uint32_t) { return 0; }
  static __device__ bool is_ignored(acc_t, const int* labels, uint32_t row) { return labels[row] == kIgnored; }

  template <class Math, class scalar_t, class Loss>
  __device__ Term<acc_t> term(const Arguments<scalar_t>& a, const Tile& tile, uint32_t row, uint32_t c, acc_t x, acc_t,
      const int* labels, const Loss& loss) const {
    const int label = labels[row];
    const bool positive = label == int(c);
    const Alpha<acc_t> alpha = alpha_of(a, c);
    if (label == kBad) return {acc_t(NAN), acc_t(NAN)};
    return id_term<Math>(positive, x, scores ? scores + tile.first_row + row : nullptr, alpha, loss);
  }
};

// Dense: one target a logit, of the type that the whole grid's have.
template <class scalar_t>
struct DenseTargets {
  using acc_t = acc_of<scalar_t>;
  const void* targets;
  Target type;
  acc_t ignored;  // NaN: none
  bool streams;   // whether those that are not all 0 may

  // f(targets as what they are)
  template <class F>
  __device__ auto as_stored(F f) const {
    if (type == Target::dense_u8) return f(static_cast<const uint8_t*>(targets));
    if (type == Target::dense_acc) return f(static_cast<const acc_t*>(targets));
    return f(static_cast<const scalar_t*>(targets));
  }

  static __device__ uint64_t any_bit(uint64_t words) { return words; }
  static __device__ uint64_t any_bit(ulonglong2 words) { return words.x | words.y; }

  template <class target_t>
  static __device__ bool any_target(const target_t* first, uint32_t count, uint32_t lane) {
    // a tile of bytes is aligned to 8, not to 16
    using words_t = std::conditional_t<sizeof(target_t) == 1, uint64_t, ulonglong2>;
    constexpr uint32_t size = sizeof(words_t) / sizeof(target_t);
    const words_t* vectors = reinterpret_cast<const words_t*>(first);
    uint64_t special = 0;
    for (uint32_t i = lane; i < count / size; i += 32) special |= any_bit(vectors[i]);
    return special != 0;
  }

  static __device__ bool has_ids() { return false; }
  __device__ bool streams_dense() const { return streams; }
  __device__ const DenseTargets& dense_or_none() const { return *this; }

  // Whole warp. Targets of an all-negative tile are read here only, those of any other tile again from the cache.
  __device__ bool has_special(const Arguments<scalar_t>& a, const Tile& tile, uint32_t lane, int*) const {
    if (a.flow == Flow::careful) return true;
    const bool special = as_stored(
        [&](auto* t) { return any_target(t + tile.first_element, tile.elements / kTileUnit * kTileUnit, lane); });
    return __ballot_sync(~0u, special) != 0;
  }

  __device__ acc_t target_at(const Tile& tile, uint32_t i) const {
    return as_stored([&](auto* stored) { return acc_t(widen(stored[tile.first_element + i])); });
  }
  __device__ bool is_ignored(acc_t target, const int*, uint32_t) const { return target == ignored; }

  template <class Math, class Loss>
  __device__ Term<acc_t> term(const Arguments<scalar_t>& a, const Tile&, uint32_t, uint32_t c, acc_t x, acc_t t,
      const int*, const Loss& loss) const {
    if (type == Target::dense_u8 && t > 1) return {acc_t(NAN), acc_t(NAN)};
    const Alpha<acc_t> alpha = alpha_of(a, c);
    if constexpr (is_smoothed<Loss>) return scored_term<Math>(x, t, alpha, loss);  // the same function for both
    const acc_t factor = factor_of(loss, t, false, alpha);
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
  __device__ bool streams_dense() const { return dense.streams; }
  __device__ const IdTargets<acc_of<scalar_t>>& ids_or_none() const { return ids; }
  __device__ const DenseTargets<scalar_t>& dense_or_none() const { return dense; }
  __device__ bool has_special(const Arguments<scalar_t>& a, const Tile& tile, uint32_t lane, int* labels) const {
    return is_dense ? dense.has_special(a, tile, lane, labels) : ids.has_special(a, tile, lane, labels);
  }
};

}  // namespace focal_ext::cuda

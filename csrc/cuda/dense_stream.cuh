// Owns: the loop through a tile of dense targets that are not all 0.
// Must not know: rows, classes, weights of logits, how a tile was cut.
//
// In a loss that mirrors, a target of 1 is a negative with the logit's sign changed: the loop takes targets of 0 and 1
// and stops before any other. In other losses it takes all targets: a logit whose target is not 0 is read as -inf,
// which counts exactly 0 as a negative, and the logit's own term is computed behind its vector.
#pragma once
#include "coefficients.cuh"
#include "marks.cuh"

namespace focal_ext::cuda {

// Logits of a lane at a time.
constexpr uint32_t kDenseLogits = 8;

// Of so many neighbouring targets a bit each, and whether the bits do not tell all.
struct TargetBits {
  uint32_t bits;
  bool others;
};

// Targets by the bytes that they take: how many a word has, and its lowest bits.
template <class target_t>
constexpr uint32_t kTargetsOfWord = 4 / sizeof(target_t);
template <class target_t>
constexpr uint32_t kLowestBits = sizeof(target_t) == 1   ? 0x01010101u
                                 : sizeof(target_t) == 2 ? 0x00010001u
                                                         : 1u;
// A target of 1, and the place of its lowest bit.
struct One {
  uint32_t value, lowest;
};
template <class target_t>
constexpr One kOne = {1, 0};
template <>
inline constexpr One kOne<float> = {0x3f800000u, 23};
template <>
inline constexpr One kOne<__nv_bfloat16> = {0x3f80u, 7};
template <>
inline constexpr One kOne<__half> = {0x3c00u, 10};
// Of floating-point numbers, which may be -0.
template <class target_t>
constexpr uint32_t kSigns = sizeof(target_t) == 1   ? 0
                            : sizeof(target_t) == 2 ? 0x80008000u
                                                    : 0x80000000u;

template <class target_t>
using TargetWords = uint32_t[kDenseLogits / kTargetsOfWord<target_t>];

template <class target_t>
__device__ void load(const target_t* targets, TargetWords<target_t>& words) {
  if constexpr (sizeof(target_t) == 1) {  // aligned to 8, not to 16
    const uint2 two = *reinterpret_cast<const uint2*>(targets);
    words[0] = two.x, words[1] = two.y;
  } else {
#pragma unroll
    for (uint32_t v = 0; v < sizeof(words) / 16; ++v) {
      const uint4 four = reinterpret_cast<const uint4*>(targets)[v];
      words[4 * v] = four.x, words[4 * v + 1] = four.y, words[4 * v + 2] = four.z, words[4 * v + 3] = four.w;
    }
  }
}

// The lowest bit of each target of a word, side by side.
template <class target_t>
__device__ uint32_t gathered(uint32_t word) {
  if constexpr (sizeof(target_t) == 1) return word * 0x10204080u >> 28;
  if constexpr (sizeof(target_t) == 2) return (word | word >> 15) & 3;
  return word;
}

// Which targets are 1; others: neither 0 nor 1.
template <class target_t>
__device__ TargetBits ones_of(const target_t* targets) {
  constexpr One one = kOne<target_t>;
  TargetWords<target_t> words;
  load(targets, words);
  uint32_t bits = 0, others = 0;
#pragma unroll
  for (uint32_t w = 0; w < sizeof(words) / 4; ++w) {
    const uint32_t ones = words[w] >> one.lowest & kLowestBits<target_t>;
    others |= words[w] ^ ones * one.value;
    bits |= gathered<target_t>(ones) << w * kTargetsOfWord<target_t>;
  }
  return {bits, others != 0};
}

// Which targets are not 0; others: more than go well one by one.
template <class target_t>
__device__ TargetBits others_than_0(const target_t* targets) {
  constexpr uint32_t kMost = 3;
  TargetWords<target_t> words;
  load(targets, words);
  uint32_t bits = 0, any = 0;
#pragma unroll
  for (uint32_t w = 0; w < sizeof(words) / 4; ++w) any |= words[w] & ~kSigns<target_t>;
  if (any) {
#pragma unroll
    for (uint32_t w = 0; w < sizeof(words) / 4; ++w) {
      // a carry into the highest bit of each target, or that bit
      constexpr uint32_t rest = sizeof(target_t) == 1 ? 0x7f7f7f7fu : ~kSigns<target_t>;
      uint32_t carried = (words[w] & rest) + rest;
      if (sizeof(target_t) == 1) carried |= words[w];
      bits |= gathered<target_t>(carried >> (8 * sizeof(target_t) - 1) & kLowestBits<target_t>)
              << w * kTargetsOfWord<target_t>;
    }
  }
  return {bits, __popc(bits) > int(kMost)};
}

// Whether a kernel has the loop. One of other factors has no registers for it; of any power it would cost the library
// as much again.
template <class Targets, class Loss, Factors factors>
constexpr bool may_stream_dense = factors == Factors::one && vanishes<Loss> && !has_any_power<Loss> &&
                                  requires(const Targets& targets) { targets.dense_or_none(); };
// Of such a tile it costs more to look for a target that is not 0 than to take the loop.
constexpr uint32_t kShortDenseTile = 2 * 32 * kDenseLogits;

template <class scalar_t, class Loss>
struct DenseStream {
  static constexpr Grade kGrade = stream_grade<scalar_t, Flow::gradient, Loss>;
  using Math = Stream<StreamLanes, kGrade>;
  using T = typename Math::value_t;
  static constexpr uint32_t kVectors = kDenseLogits / kVector<scalar_t>, kPerWord = kVector<scalar_t> / 4;
  using Coefficients = std::conditional_t<Loss::mirrors, Each<kDenseLogits>, Uniform>;

  const Arguments<scalar_t>& a;
  const DenseTargets<scalar_t>& targets;
  const Tile& tile;
  const Loss& loss;
  float scale, factor;  // of all values, and of their gradients beside it
  float sum = 0;  // with the scale

  // Whole warp: how many of the tile's logits are done.
  __device__ uint32_t run(uint32_t lane) {
    const uint32_t groups = tile.elements / kDenseLogits;
    float negatives = 0;
    uint32_t first = 0;
#pragma unroll 1
    for (; first < groups; first += 32) {
      const uint32_t i = (first + lane) * kDenseLogits;
      TargetBits found = {};
      uint4 words[kVectors] = {};
      float value = 0;
      if (first + lane < groups) {
        const uint4* const inputs = reinterpret_cast<const uint4*>(a.inputs + tile.first_element + i);
#pragma unroll
        for (uint32_t v = 0; v < kVectors; ++v) words[v] = inputs[v];
        found = targets.as_stored([&](auto* t) {
          if constexpr (Loss::mirrors) return ones_of(t + tile.first_element + i);
          else return others_than_0(t + tile.first_element + i);
        });
        value = results(words, found.bits);
      }
      // what the bits do not tell, +inf and NaN: element by element, from here on
      if (__ballot_sync(~0u, found.others || !(value < INFINITY)) != 0) break;
      negatives += value;
      if (first + lane < groups) finish(words, i, found.bits);
    }
    sum += scale * negatives;
    __syncwarp();  // all have read their logits: the gradients that may replace them are other lanes' now
    return (first < groups ? first : groups) * kDenseLogits;
  }

  // Signs of a word's logits where their bits are set.
  static __device__ uint32_t signs(uint32_t bits, uint32_t word) {
    if constexpr (kPerWord == 1) return bits << (31 - word) & 0x80000000u;
    else return bits * ((1u << (15 - 2 * word)) + (1u << (30 - 2 * word))) & 0x80008000u;
  }
  static __device__ void change_signs(uint4 (&words)[kVectors], uint32_t bits) {
#pragma unroll
    for (uint32_t v = 0; v < kVectors; ++v) {
      words[v].x ^= signs(bits, 4 * v), words[v].y ^= signs(bits, 4 * v + 1);
      words[v].z ^= signs(bits, 4 * v + 2), words[v].w ^= signs(bits, 4 * v + 3);
    }
  }

  // The compiler makes four stores of an assignment here.
  static __device__ void store(uint4* to, const uint4& words) { __stwb(to, words); }

  // The logits' gradients in their place; returns the values without the scale.
  __device__ float results(uint4 (&words)[kVectors], uint32_t bits) const {
    if constexpr (Loss::mirrors) change_signs(words, bits);
    Coefficients k;
    k.factor = scale * factor;
    if constexpr (Loss::mirrors) {
      const float ratio = a.alpha_positive / a.alpha_negative;
#pragma unroll
      for (uint32_t j = 0; j < kDenseLogits; ++j) k.of[j] = bits >> j & 1 ? ratio : 1.f;
    }
    T values = Math::constant(0);
#pragma unroll
    for (uint32_t v = 0; v < kVectors; ++v) {
      float x[kVector<scalar_t>], result[kVector<scalar_t>];
      unpack<scalar_t>(words[v], x);
      if constexpr (!Loss::mirrors) {
        if (bits) {
#pragma unroll
          for (uint32_t j = 0; j < kVector<scalar_t>; ++j)
            if (bits >> (v * kVector<scalar_t> + j) & 1) x[j] = -INFINITY;
        }
      }
#pragma unroll
      for (uint32_t j = 0; j < kVector<scalar_t>; j += Math::width) {
        const auto term = k.template term<Math>(loss, Math::load(x + j), int(v * kVector<scalar_t> + j));
        values = values + term.value;
        Math::store(result + j, term.gradient * Math::constant(k.factor));
      }
      words[v] = pack<scalar_t>(result);
    }
    if constexpr (Loss::mirrors) change_signs(words, bits);
    return Math::sum(values);
  }

  __device__ void finish(const uint4 (&words)[kVectors], uint32_t i, uint32_t bits) {
    if (Loss::mirrors || bits == 0) {
      if (!a.gradient) return;
#pragma unroll
      for (uint32_t v = 0; v < kVectors; ++v)
        store(reinterpret_cast<uint4*>(a.gradient + tile.first_element + i) + v, words[v]);
    } else {
      one_by_one(words, i, bits);
    }
  }

  // A logit's own term is computed before anything is written to its place: the gradient may replace the logits.
  __device__ void one_by_one(const uint4 (&words)[kVectors], uint32_t i, uint32_t bits) {
    if (a.gradient) {
#pragma unroll
      for (uint32_t v = 0; v < kVectors; ++v) {
        float result[kVector<scalar_t>];
        unpack<scalar_t>(words[v], result);
#pragma unroll
        for (uint32_t j = 0; j < kVector<scalar_t>; ++j)
          if (!(bits >> (v * kVector<scalar_t> + j) & 1))
            a.gradient[tile.first_element + i + v * kVector<scalar_t> + j] = narrow<scalar_t>(result[j]);
      }
    }
#pragma unroll 1
    for (; bits; bits &= bits - 1) {
      const uint32_t element = i + uint32_t(__ffs(int(bits))) - 1;
      const float x = widen(a.inputs[tile.first_element + element]);  // before the target: both are in flight
      const float t = targets.target_at(tile, element);
      const Term<float> own = targets.template term<CarefulFloat>(a, tile, 0, 0, x, t, nullptr, loss);
      sum += finished(a, tile, element, 0, 0, own, t == targets.ignored, factor);
    }
  }
};

}  // namespace focal_ext::cuda

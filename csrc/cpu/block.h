// Owns: a block of elements in float or double: how it is read from memory and written back, its special elements, its
// sum.
// Must not know: losses, rows, planes. Compiled once per instruction set, inside its namespace.
#pragma once
#include "storage.h"
#ifdef __AVX512BW__
#include <immintrin.h>
#endif

// One copy of each loop: a call costs nothing against a block.
#define FOCAL_EXT_ONE_COPY __attribute__((noinline))

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

constexpr int64_t kBlock = 512;  // a few buffers of it stay in the first-level cache
constexpr int64_t kAhead = 12;   // blocks between a prefetch and its use
constexpr int64_t kDenseAhead = 4;  // the same with dense targets
// partial sums per block, the same at every vector width; fewer would wait for each other
constexpr int64_t kLanes = 64;
// formulas run over whole steps of padded blocks: no loop has a remainder, which halves the library
constexpr int64_t kStep = 32;

constexpr int64_t whole_steps(int64_t n) { return (n + kStep - 1) / kStep * kStep; }

// Elements that need more than the logit: targets, weights, per-class alpha, an upstream gradient map.
template <class acc_t>
struct Block {
  acc_t x[kBlock];
  acc_t t[kBlock];         // target
  acc_t value[kBlock];     // factor of the loss
  acc_t gradient[kBlock];  // factor of the derivative, scale included

  void pad(int64_t n) {
    for (int64_t i = n; i < whole_steps(n); ++i) x[i] = t[i] = value[i] = gradient[i] = 0;
  }
};

// What replaces elements of a block that is computed as if all were negatives: positives, and ranges of ignored (0) or
// bad (NaN) ones; or steps of dense targets.
template <class acc_t>
struct Specials {
  Block<acc_t> positives;
  int64_t count = 0, ranges = 0, steps = 0;
  int64_t at[kBlock];             // of positives
  int64_t step[kBlock / kStep];   // of dense targets, by number: then `positives` has all elements of these steps
  int64_t first[kBlock], last[kBlock];
  acc_t constant[kBlock];

  void add_range(int64_t begin, int64_t end, bool bad) {
    first[ranges] = begin, last[ranges] = end, constant[ranges++] = bad ? acc_t(__builtin_nan("")) : acc_t(0);
  }
};

// Formulas see blocks of float or double only: half types are widened and rounded here, a block at a time, which costs
// less than the instructions that packing them inside the formula's loop would, and instantiates no loss twice.
template <class acc_t, class scalar_t>
void widen(const scalar_t* from, int64_t n, acc_t* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = acc_t(load(from[i]));
  for (int64_t i = n; i < whole_steps(n); ++i) to[i] = 0;
}
template <class acc_t, class scalar_t>
void narrow(const acc_t* from, int64_t n, scalar_t* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(to[i], from[i]);
}

// store() by halves of a float, so that the arithmetic is on twice as many elements at once.
inline void narrow(const float* from, int64_t n, BFloat16* to) {
  const Half* const halves = reinterpret_cast<const Half*>(from);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t low = halves[2 * i + kLowHalf], high = halves[2 * i + kHighHalf];
    const uint16_t tie = 0x8000 - (high & 1);  // up beyond it: nearest, ties to even
    to[i].bits = uint16_t(high + uint16_t((low > tie) & ((high & 0x7fff) != 0x7fff)));  // a NaN stays one
  }
}

#ifdef __AVX512BW__
// The same by the processor's own instruction: 6 % of loss and gradient. It takes subnormal numbers for 0: steps that
// have one go the other way.
__attribute__((target("avx512bf16"))) inline void narrow_natively(const float* from, int64_t n, BFloat16* to) {
  constexpr int kSubnormal = 0x20;
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512 low = _mm512_loadu_ps(from + i), high = _mm512_loadu_ps(from + i + 16);
    const __m512i halves = __m512i(_mm512_cvtne2ps_pbh(high, low));
    const bool has_zero = _mm512_testn_epi16_mask(halves, _mm512_set1_epi16(0x7fff));
    if (has_zero && (_mm512_fpclass_ps_mask(low, kSubnormal) | _mm512_fpclass_ps_mask(high, kSubnormal)))
      narrow(from + i, 32, to + i);
    else _mm512_storeu_si512(to + i, halves);
  }
  narrow(from + i, n - i, to + i);
}
#endif

// Elements [begin, begin + n) of a tensor of logits' type, in place if they are whole steps of acc_t, else in `buffer`.
template <class acc_t>
const acc_t* load_block(const void* tensor, Scalar scalar, int64_t begin, int64_t n, acc_t* buffer) {
  if (scalar == Scalar::bf16) widen(static_cast<const BFloat16*>(tensor) + begin, n, buffer);
  else if (scalar == Scalar::f16) widen(static_cast<const Float16*>(tensor) + begin, n, buffer);
  else if (n % kStep == 0) return static_cast<const acc_t*>(tensor) + begin;
  else widen(static_cast<const acc_t*>(tensor) + begin, n, buffer);
  return buffer;
}

// Whether the processor's own prefetching stops at the end of a page: Intel's does, Zen 4's does not and is slowed
// down by being asked (docs/experiments.md).
inline bool pays_to_prefetch() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel");
#else
  return false;
#endif
}

// Dense targets are a second stream, which AMD's prefetching keeps up with less well than with one.
inline bool pays_to_prefetch_dense() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd");
#else
  return false;
#endif
}

// Asks for a block before it is needed, for the nearest cache or the next. Past the end it does nothing. Inlined: the
// compiler takes a call out that does nothing else.
enum class Cache { first = 3, second = 2 };
template <Cache cache = Cache::first>
FOCAL_EXT_INLINE void prefetch_block(const void* tensor, int64_t size, int64_t begin) {
  const uintptr_t first = reinterpret_cast<uintptr_t>(tensor) + begin * size;
  for (int64_t i = 0; i < kBlock * size; i += 64)
    __builtin_prefetch(reinterpret_cast<const void*>(first + i), 0, int(cache));
}

template <class acc_t>
void store_block(const acc_t* values, int64_t n, void* tensor, Scalar scalar, int64_t begin) {
#ifdef __AVX512BW__
  if constexpr (sizeof(acc_t) == sizeof(float))
    if (scalar == Scalar::bf16 && __builtin_cpu_supports("avx512bf16"))
      return narrow_natively(values, n, static_cast<BFloat16*>(tensor) + begin);
#endif
  if (scalar == Scalar::bf16) narrow(values, n, static_cast<BFloat16*>(tensor) + begin);
  else if (scalar == Scalar::f16) narrow(values, n, static_cast<Float16*>(tensor) + begin);
  else narrow(values, n, static_cast<acc_t*>(tensor) + begin);
}

template <class acc_t>
FOCAL_EXT_ONE_COPY void multiply(acc_t* values, int64_t n, acc_t factor) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

// The sum of 2 half entries into the first. Loops of constant length stay in registers: 3 % of loss and gradient.
template <int half>
void fold(double* totals) {
  for (int lane = 0; lane < half; ++lane) totals[lane] += totals[lane + half];
  if constexpr (half > 1) fold<half / 2>(totals);
}

template <class acc_t>
FOCAL_EXT_ONE_COPY double sum(const acc_t* values, int64_t n) {
  acc_t lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  double totals[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) totals[lane] = double(lanes[lane]);
  fold<kLanes / 2>(totals);
  for (; i < n; ++i) totals[0] += double(values[i]);
  return totals[0];
}

// Puts what is special among the terms of a block in its place. Losses that are not to be kept are 0 there: returns
// their sum.
template <class acc_t>
FOCAL_EXT_ONE_COPY double put_in_place(const Specials<acc_t>& s, bool keeps_losses, acc_t* values, acc_t* gradient) {
  const Block<acc_t>& b = s.positives;
  for (int64_t k = 0; k < s.steps; ++k) {
    const int64_t at = s.step[k] * kStep, from = k * kStep;
#pragma omp simd
    for (int64_t i = 0; i < kStep; ++i) values[at + i] = keeps_losses ? b.value[from + i] : 0;
    if (gradient)
#pragma omp simd
      for (int64_t i = 0; i < kStep; ++i) gradient[at + i] = b.gradient[from + i];
  }
  if (s.steps) return sum(b.value, s.steps * kStep);
  double total = 0;
  for (int64_t i = 0; i < s.count; ++i) {
    values[s.at[i]] = keeps_losses ? b.value[i] : 0;
    total += double(b.value[i]);
    if (gradient) gradient[s.at[i]] = b.gradient[i];
  }
  for (int64_t r = 0; r < s.ranges; ++r) {
    const acc_t constant = s.constant[r];
    for (int64_t i = s.first[r]; i < s.last[r]; ++i) values[i] = constant;
    if (gradient)
      for (int64_t i = s.first[r]; i < s.last[r]; ++i) gradient[i] = constant;
  }
  return total;
}

// True when no logit is beyond the limit, infinite or NaN.
template <class scalar_t>
FOCAL_EXT_ONE_COPY bool is_within(scalar_t limit, const scalar_t* x, int64_t n) {
  const auto most = magnitude(limit);
  auto largest = most;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < n; ++i) largest = magnitude(x[i]) > largest ? magnitude(x[i]) : largest;
  return largest == most;
}

// A logit whose alpha is 0 contributes 0 also where the loss is infinite.
template <class acc_t>
acc_t finite(acc_t x) {
  return x > acc_t(3e38) ? acc_t(3e38) : x < acc_t(-3e38) ? acc_t(-3e38) : x;
}

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

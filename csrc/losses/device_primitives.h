// Owns: the arithmetic policies of the CUDA kernels, with a host version of each; the only place with inline PTX.
// Must not know: any loss, any tensor, any loop.
//
// DeviceFloat is the complete float policy, right for every input. Stream<T, grade> is the policy of the hot loop: one or two
// numbers at a time, no clamps, so +inf and NaN give a NaN value and the loop that uses it recomputes those with DeviceFloat.
#pragma once
#include "primitives.h"

// Issue 2 numbers per instruction where the chip can (sm_100 and later).
#if !defined(FOCAL_EXT_PACKED) && defined(__CUDA_ARCH__)
#define FOCAL_EXT_PACKED (__CUDA_ARCH__ >= 1000)
#elif !defined(FOCAL_EXT_PACKED)
#define FOCAL_EXT_PACKED 0
#endif

// On the host every approximate instruction passes its correctly rounded result through this, with its documented error in ULP:
// a test may replace it to prove the error bounds.
#ifndef FOCAL_EXT_APPROXIMATE
#define FOCAL_EXT_APPROXIMATE(result, units) (result)
#endif

namespace focal_ext {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// 2^a, at most 2 ULP from the correctly rounded result; results below 2^-126 are 0.
FOCAL_EXT_INLINE float exp2_approx(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return a < -126.f ? 0.f : FOCAL_EXT_APPROXIMATE(::exp2f(a), 2);
#endif
}

// 1 / a for a >= 1, error 1 ULP; results below 2^-126 are 0.
FOCAL_EXT_INLINE float reciprocal_approx(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return a > 8.50705917e37f ? 0.f : FOCAL_EXT_APPROXIMATE(1.f / a, 1);
#endif
}

// The smaller of a and b; NaN if either is.
FOCAL_EXT_INLINE float min_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a < b || a != a ? a : b;
#endif
}

FOCAL_EXT_INLINE float fused(float a, float b, float c) { return ::fmaf(a, b, c); }

// Two floats in an aligned pair of registers: one instruction for both from sm_100 on.
struct Pair {
  float low, high;
};

FOCAL_EXT_INLINE Pair fused(Pair a, Pair b, Pair c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  Pair d;
  asm("{ .reg .b64 a, b, c, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; mov.b64 c, {%6, %7};"
      " fma.rn.f32x2 d, a, b, c; mov.b64 {%0, %1}, d; }"
      : "=f"(d.low), "=f"(d.high)
      : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high), "f"(c.low), "f"(c.high));
  return d;
#else
  return {::fmaf(a.low, b.low, c.low), ::fmaf(a.high, b.high, c.high)};
#endif
}
FOCAL_EXT_INLINE Pair operator*(Pair a, Pair b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  Pair d;
  asm("{ .reg .b64 a, b, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; mul.rn.f32x2 d, a, b; mov.b64 {%0, %1}, d; }"
      : "=f"(d.low), "=f"(d.high)
      : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high));
  return d;
#else
  return {a.low * b.low, a.high * b.high};
#endif
}
FOCAL_EXT_INLINE Pair operator+(Pair a, Pair b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  Pair d;
  asm("{ .reg .b64 a, b, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; add.rn.f32x2 d, a, b; mov.b64 {%0, %1}, d; }"
      : "=f"(d.low), "=f"(d.high)
      : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high));
  return d;
#else
  return {a.low + b.low, a.high + b.high};
#endif
}
FOCAL_EXT_INLINE Pair operator-(Pair a, Pair b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  Pair d;
  asm("{ .reg .b64 a, b, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; sub.rn.f32x2 d, a, b; mov.b64 {%0, %1}, d; }"
      : "=f"(d.low), "=f"(d.high)
      : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high));
  return d;
#else
  return {a.low - b.low, a.high - b.high};
#endif
}

// What differs between one float and two: how a constant spreads, and what has no packed instruction.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int width = 1;
  static FOCAL_EXT_INLINE float spread(float c) { return c; }
  static FOCAL_EXT_INLINE float load(const float* x) { return *x; }
  static FOCAL_EXT_INLINE void store(float* x, float a) { *x = a; }
  static FOCAL_EXT_INLINE float sum(float a) { return a; }
  template <class F, class... A>
  static FOCAL_EXT_INLINE float each(F f, A... a) { return f(a...); }
};
template <>
struct Lanes<Pair> {
  static constexpr int width = 2;
  static FOCAL_EXT_INLINE Pair spread(float c) { return {c, c}; }
  static FOCAL_EXT_INLINE Pair load(const float* x) { return {x[0], x[1]}; }
  static FOCAL_EXT_INLINE void store(float* x, Pair a) { x[0] = a.low, x[1] = a.high; }
  static FOCAL_EXT_INLINE float sum(Pair a) { return a.low + a.high; }
  template <class F, class... A>
  static FOCAL_EXT_INLINE Pair each(F f, A... a) { return {f(a.low...), f(a.high...)}; }
};

// 2^(scale (a + b)) with the scale in two floats and |b| at most rounding of a: the product's tail enters as a factor 1 + ln 2 tail.
template <class T>
FOCAL_EXT_INLINE T exp2_product(float scale, float scale_low, T a, T b) {
  using L = Lanes<T>;
  const T high = L::spread(scale) * a;
  const T tail = fused(L::spread(scale), b, fused(L::spread(scale_low), a, fused(L::spread(scale), a, L::spread(-1.f) * high)));
  const T power = L::each([](float t) { return exp2_approx(t); }, high);
  return fused(power, L::spread(kLn2) * tail, power);
}

// exp(gamma (a - b)) for -limit <= a <= 0 <= b. The difference is kept in two floats: gamma multiplies its rounding error.
template <class T>
FOCAL_EXT_INLINE T exp_product(Exponent gamma, T a, T b) {
  const T difference = a - b;
  return exp2_product(gamma.high2, gamma.low2, difference, (a - difference) - b);
}

struct DeviceFloat {
  using value_t = float;
  static FOCAL_EXT_INLINE float limit() { return 105.f; }
  static FOCAL_EXT_INLINE float constant(float c) { return c; }
  static FOCAL_EXT_INLINE float constant(Exponent gamma) { return gamma.high; }
  static FOCAL_EXT_INLINE float abs(float a) { return ::fabsf(a); }
  static FOCAL_EXT_INLINE float min(float a, float b) { return a < b ? a : b; }
  static FOCAL_EXT_INLINE float max(float a, float b) { return a > b ? a : b; }
  static FOCAL_EXT_INLINE float bounded(float a) { return a < 1e38f ? a : 1e38f; }
  static FOCAL_EXT_INLINE float select_positive(float z, float a, float b) { return z > 0.f ? a : b; }
  static FOCAL_EXT_INLINE float fma(float a, float b, float c) { return fused(a, b, c); }
  static FOCAL_EXT_INLINE void shares(float e, float& w, float& r) { r = reciprocal_approx(1.f + e), w = e * r; }
  static FOCAL_EXT_INLINE float log1p_exp(float, float w) { return w * log1p_polynomial<DeviceFloat>(w); }
  static FOCAL_EXT_INLINE float pow_exp(Exponent gamma, float a, float b) { return exp_product(gamma, a, b); }

  // exp(-y) = 2^t exp(-y - t ln 2): the correction takes the rounding of t from 43 units of 2^-23 to 2.
  static FOCAL_EXT_INLINE float exp_neg(float y) {
    const float t = y * -kLog2E;
    const float power = exp2_approx(t);
    return fused(power, fused(t, -kLn2, -y), power);
  }

  // u = 2^k (1 + m): k + log2(1 + m) in two floats.
  static FOCAL_EXT_INLINE float pow(float u, Exponent gamma) {
    const bool subnormal = u < 1.17549435e-38f;
    const float v = subnormal ? u * 4294967296.f : u;
    const int32_t shifted = int32_t(bits(v) - 0x3f3504f3u) >> 23;  // 1 + m in [sqrt(1/2), sqrt(2))
    const float m = from_bits(bits(v) - (uint32_t(shifted) << 23)) - 1.f;
    const float k = float(shifted) - (subnormal ? 32.f : 0.f);
    const float fraction = m * log2_polynomial<DeviceFloat>(m);
    const float logarithm = k + fraction;
    const float power = exp2_product(gamma.high, gamma.low, logarithm, (k - logarithm) + fraction);
    return u < 0.f ? from_bits(0x7fc00000u) : u == 0.f ? 0.f : power;
  }

 private:
  static FOCAL_EXT_INLINE uint32_t bits(float a) { uint32_t b; memcpy(&b, &a, 4); return b; }
  static FOCAL_EXT_INLINE float from_bits(uint32_t b) { float a; memcpy(&a, &b, 4); return a; }
};

// How exact the hot loop is before the result is rounded to the logits' type.
enum class Grade { single, half };

template <class T, Grade grade>
struct Stream : Lanes<T> {
  using value_t = T;
  static FOCAL_EXT_INLINE T constant(float c) { return Lanes<T>::spread(c); }
  static FOCAL_EXT_INLINE T constant(Exponent gamma) { return Lanes<T>::spread(gamma.high); }
  static FOCAL_EXT_INLINE T bounded(T a) { return a; }
  static FOCAL_EXT_INLINE T fma(T a, T b, T c) { return fused(a, b, c); }
  static FOCAL_EXT_INLINE T pow_exp(Exponent gamma, T a, T b) { return exp_product(gamma, a, b); }
};

// log(1+e) / w to 6.5e-6, enough where the result is rounded to 2^-9 or 2^-12.
template <class Math>
FOCAL_EXT_INLINE typename Math::value_t log1p_polynomial_half(typename Math::value_t w) {
  typename Math::value_t q = Math::constant(0.846380802f);
  q = Math::fma(q, w, Math::constant(-0.311095037f));
  q = Math::fma(q, w, Math::constant(0.40336331f));
  q = Math::fma(q, w, Math::constant(0.313671012f));
  q = Math::fma(q, w, Math::constant(0.500895453f));
  return Math::fma(q, w, Math::constant(0.999993509f));
}

// Without |z|: p = 1 / (1 + exp(-z)) needs no selection by sign, and min(p, q) is the polynomial's argument either way.
// Single grade: exp(-z) corrected as in DeviceFloat, q = exp(-z) p. Beyond 88, where p rounds to 0, the exponential must stay finite.
// Half grade: q = 1 - p, absolute error 2^-23 where p is near 1 and q only adds to it. It multiplies the logit, so this relies on
// rcp(1) = 1 exactly, which tests/gpu checks on the chip.
template <class T, Grade grade>
struct Sigmoid<Stream<T, grade>> {
  using Math = Stream<T, grade>;
  T log1p_e, p, q;

  explicit FOCAL_EXT_INLINE Sigmoid(T z) {
    const auto exp2 = [](float t) { return exp2_approx(t); };
    const auto reciprocal = [](float a) { return reciprocal_approx(a); };
    const T one = Math::constant(1);
    if constexpr (grade == Grade::single) {
      const T y = Math::each([](float x) { return min_or_nan(-x, 88.f); }, z);
      const T t = y * Math::constant(kLog2E);
      const T power = Math::each(exp2, t);
      const T e = Math::fma(power, Math::fma(t, Math::constant(-kLn2), y), power);
      p = Math::each(reciprocal, one + e);
      q = e * p;
      w_ = Math::each([](float a, float b) { return ::fminf(a, b); }, p, q);
      polynomial_ = log1p_polynomial<Math>(w_);
    } else {
      p = Math::each(reciprocal, one + Math::each(exp2, z * Math::constant(-kLog2E)));
      q = one - p;
      w_ = Math::each([](float a, float b) { return ::fminf(a, b); }, p, q);
      polynomial_ = log1p_polynomial_half<Math>(w_);
    }
    log1p_e = w_ * polynomial_;
  }
  FOCAL_EXT_INLINE T softplus(T z) const {
    return Math::fma(w_, polynomial_, Math::each([](float x) { return ::fmaxf(x, 0.f); }, z));
  }
  // log p = negative_part - log1p_e; below -88 the softplus that multiplies p^gamma is 0.
  FOCAL_EXT_INLINE T negative_part(T z) const {
    return Math::each([](float x) { return ::fmaxf(::fminf(x, 0.f), -88.f); }, z);
  }

 private:
  T w_, polynomial_;
};

}  // namespace focal_ext

// Owns: the arithmetic every loss formula is written in, one policy per number type and device.
// Must not know: any loss, any tensor, any loop.
//
// A policy `Math` supplies: value_t, limit(), abs, min, max, fma, select_positive(z, a, b) = z > 0 ? a : b, exp_neg(y) = exp(-y)
// for 0 <= y <= limit(), shares(e, w, r): r = 1 / (1 + e) and w = e r, log1p_exp(e, w) = log(1 + e), pow_exp(gamma, a, b) =
// exp(gamma (a - b)), pow(u, gamma), and bounded(y) = min(y, a finite number >= 2 limit()) for y >= 0, anything for NaN. Beyond
// limit() exp(-y) rounds to 0, so clamping there changes no result. min and max keep the second argument when it is NaN.
// log_ratio(u, rest, ratio, inverse): ratio = -log(1 - u) / u and inverse = 1 / rest, for 0 < u < 1 and rest = 1 - u, anything outside.
// product_or_zero(a, b) = a b, 0 where a is 0 even if b is infinite.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FOCAL_EXT_INLINE __host__ __device__ __forceinline__
#else
#define FOCAL_EXT_INLINE inline __attribute__((always_inline))
#endif

namespace focal_ext {

// An exponent in two floats: float(1.7) alone costs 28 ULP in the tail. Saturates where p^gamma is 0 or 1 to rounding anyway,
// so that gamma * q cannot overflow.
struct Exponent {
  float high, low;
  float high2, low2;  // gamma / ln 2, for 2^x
  double full;
  explicit Exponent(double gamma) : full(gamma) {
    const double saturated = gamma < 1e36 ? gamma : 1e36;
    split(saturated, high, low);
    split(saturated * 1.4426950408889634, high2, low2);
  }

 private:
  static void split(double a, float& high, float& low) {
    high = float(a);
    low = float(a - double(high));
  }
};

// A number that a call chooses, in every type that formulas compute in: kernels do not convert.
struct Parameter {
  float single;
  double full;
  FOCAL_EXT_INLINE Parameter(double a) : single(float(a)), full(a) {}
};

// p = sigmoid(z), q = sigmoid(-z) and their logarithms, from one exponential. A policy with a cheaper way specialises it.
template <class Math>
struct Sigmoid;
// Binary cross entropy, likewise.
template <class Math>
struct CrossEntropy;

// log(1+e) / w with w = e/(1+e), i.e. -log(1-w)/w on [0, 1/2]; minimax, relative error 2^-25.4.
template <class Math>
FOCAL_EXT_INLINE typename Math::value_t log1p_polynomial(typename Math::value_t w) {
  typename Math::value_t q = Math::constant(1.44110689f);
  q = Math::fma(q, w, Math::constant(-1.69580998f));
  q = Math::fma(q, w, Math::constant(1.25766826f));
  q = Math::fma(q, w, Math::constant(-0.203538359f));
  q = Math::fma(q, w, Math::constant(0.269612631f));
  q = Math::fma(q, w, Math::constant(0.242805092f));
  q = Math::fma(q, w, Math::constant(0.333700614f));
  q = Math::fma(q, w, Math::constant(0.499992853f));
  return Math::fma(q, w, Math::constant(1.00000002f));
}

// log2(1 + m) / m on [sqrt(1/2) - 1, sqrt(2) - 1]; relative error 2^-27.9.
template <class Math>
FOCAL_EXT_INLINE typename Math::value_t log2_polynomial(typename Math::value_t m) {
  typename Math::value_t p = Math::constant(-0.109949824f);
  p = Math::fma(p, m, Math::constant(0.186175092f));
  p = Math::fma(p, m, Math::constant(-0.191062699f));
  p = Math::fma(p, m, Math::constant(0.204600594f));
  p = Math::fma(p, m, Math::constant(-0.239617408f));
  p = Math::fma(p, m, Math::constant(0.28856741f));
  p = Math::fma(p, m, Math::constant(-0.360696649f));
  p = Math::fma(p, m, Math::constant(0.480898241f));
  p = Math::fma(p, m, Math::constant(-0.721347352f));
  return Math::fma(p, m, Math::constant(1.44269504f));
}

// float on the host. Plain C++ without branch or call, so that a simd loop over it vectorises at every instruction-set level.
struct HostFloat {
  using value_t = float;
  static constexpr FOCAL_EXT_INLINE float limit() { return 105.f; }
  static constexpr FOCAL_EXT_INLINE float constant(float c) { return c; }
  static FOCAL_EXT_INLINE float constant(Exponent gamma) { return gamma.high; }
  static FOCAL_EXT_INLINE float constant(Parameter a) { return a.single; }

  static FOCAL_EXT_INLINE float abs(float a) { return from_bits(bits(a) & 0x7fffffffu); }
  static FOCAL_EXT_INLINE float min(float a, float b) { return a < b ? a : b; }
  static FOCAL_EXT_INLINE float max(float a, float b) { return a > b ? a : b; }
  static FOCAL_EXT_INLINE float select_positive(float z, float a, float b) { return z > 0.f ? a : b; }
  // On the bits, where positive floats are ordered like integers: one instruction instead of a compare and a blend.
  static FOCAL_EXT_INLINE float bounded(float y) { return from_bits(bits(y) < 0x7f000000u ? bits(y) : 0x7f000000u); }
  // Contraction is off for the whole library: a product and a sum fuse here or nowhere, so AVX2 and AVX-512 agree to the bit.
  static FOCAL_EXT_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
  }
  // r as 1 - w is exact to half a ULP, where w as e r would round once more: 10.1 -> 8.8 ULP at gamma 2 for the same instructions.
  static FOCAL_EXT_INLINE void shares(float e, float& w, float& r) { w = e / (1.f + e), r = 1.f - w; }
  static FOCAL_EXT_INLINE float exp_neg(float y) {
    const float shifted = fma(y, -1.44269504f, kRound);
    return scale(exp_polynomial(reduce(y, shifted)), shifted);
  }
  static FOCAL_EXT_INLINE float log1p_exp(float, float w) { return w * log1p_polynomial<HostFloat>(w); }

  static FOCAL_EXT_INLINE float pow_exp(Exponent gamma, float a, float b) {
    // gamma multiplies the rounding error of a - b, so the difference is kept in two floats (Knuth's sum).
    const float difference = a - b, minus_b = difference - a;
    const float rest = (a - (difference - minus_b)) - (b + minus_b);
    const float high = gamma.high * difference;
    const float low = residual(gamma.high, difference, high) + (gamma.low * difference + gamma.high * rest);
    const float y = min(limit(), -high);
    const float shifted = fma(y, -1.44269504f, kRound);
    return scale(exp_polynomial(reduce(y, shifted) - (y < limit() ? low : 0.f)), shifted);
  }

  // u^gamma = 2^(gamma (k + log2 m)), u = 2^k m; the integer part times gamma stays exact in two floats.
  static FOCAL_EXT_INLINE float pow(float u, Exponent gamma) {
    const bool subnormal = u < 1.17549435e-38f;
    const float v = subnormal ? u * 4294967296.f : u;
    const int32_t shifted = int32_t(bits(v) - 0x3f3504f3u) >> 23;  // m in [sqrt(1/2), sqrt(2))
    const float m = from_bits(bits(v) - (uint32_t(shifted) << 23)) - 1.f;
    const float k = float(shifted) - (subnormal ? 32.f : 0.f);
    const float high = gamma.high * k;
    const float low = residual(gamma.high, k, high) + (gamma.low * k + gamma.high * (m * log2_polynomial<HostFloat>(m)));
    const bool underflows = high + low < -152.f;
    const float power = exp2_sum(underflows ? -152.f : high, underflows ? 0.f : low);
    return u < 0.f ? __builtin_nanf("") : power;
  }

  static FOCAL_EXT_INLINE float product_or_zero(float a, float b) { return a == 0.f ? 0.f : a * b; }

  static FOCAL_EXT_INLINE void log_ratio(float u, float rest, float& ratio, float& inverse) {
    const float normal = max(1.17549435e-38f, rest);
    const int32_t k = int32_t(bits(normal) - 0x3f3504f3u) >> 23;  // rest = 2^k (1 + m), 1 + m in [sqrt(1/2), sqrt(2))
    const float m = from_bits(bits(normal) - (uint32_t(k) << 23)) - 1.f;
    const float far = -0.693147182f * fma(m, log2_polynomial<HostFloat>(m), float(k)) / u;
    ratio = u <= 0.5f ? log1p_polynomial<HostFloat>(u) : far;
    inverse = 1.f / rest;
  }

  static FOCAL_EXT_INLINE uint32_t bits(float a) { uint32_t b; __builtin_memcpy(&b, &a, 4); return b; }
  static FOCAL_EXT_INLINE float from_bits(uint32_t b) { float a; __builtin_memcpy(&a, &b, 4); return a; }

 private:
  // a * b - product, exactly with a fused multiply-add, else by Dekker's splitting.
  static FOCAL_EXT_INLINE float residual(float a, float b, float product) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, -product);
#else
    const float a_high = from_bits(bits(a) & 0xfffff000u), b_high = from_bits(bits(b) & 0xfffff000u);
    const float a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
  }

  // 2^n p without a second rounding before the last product: n + 64 is built as an exponent, so the scale is a normal number
  // for all n >= -190 and subnormal results round once.
  static FOCAL_EXT_INLINE float scale(float p, float shifted) { return (p * from_bits(bits(shifted) << 23)) * 5.42101086e-20f; }
  static constexpr float kRound = 12582912.f + 191.f;  // 1.5 * 2^23: adding it rounds to an integer; 191 = 127 + 64

  // Cody-Waite: y = -n ln 2 + (result), n = shifted - kRound; the first product is exact.
  static FOCAL_EXT_INLINE float reduce(float y, float shifted) {
    const float n = shifted - kRound;
    return fma(n, -2.12194440e-4f, fma(n, 0.693359375f, y));
  }

  // exp(-r) for |r| <= 0.35; minimax, relative error 2^-29.
  static FOCAL_EXT_INLINE float exp_polynomial(float r) {
    float p = 1.38368353e-3f;
    p = fma(p, r, -8.37482416e-3f);
    p = fma(p, r, 4.16682262e-2f);
    p = fma(p, r, -0.166664201f);
    p = fma(p, r, 0.499999921f);
    p = fma(p, r, -1.00000004f);
    return fma(p, r, 1.f);
  }

  // 2^(a + b), -152 <= a + b < 64.
  static FOCAL_EXT_INLINE float exp2_sum(float a, float b) {
    const float shifted = a + b + kRound;
    const float f = (a - (shifted - kRound)) + b;
    float p = 1.53457886e-4f;
    p = fma(p, f, 1.33999578e-3f);
    p = fma(p, f, 9.61848925e-3f);
    p = fma(p, f, 5.55032871e-2f);
    p = fma(p, f, 0.240226469f);
    p = fma(p, f, 0.693147206f);
    p = fma(p, f, 1.f);
    return scale(p, shifted);
  }
};

// double on host and device, through libm: the accurate path, not the fast one.
struct Double {
  using value_t = double;
  static constexpr FOCAL_EXT_INLINE double limit() { return 750.; }
  static constexpr FOCAL_EXT_INLINE double constant(double c) { return c; }
  static FOCAL_EXT_INLINE double constant(Exponent gamma) { return gamma.full; }
  static FOCAL_EXT_INLINE double constant(Parameter a) { return a.full; }
  static FOCAL_EXT_INLINE double abs(double a) { return ::fabs(a); }
  static FOCAL_EXT_INLINE double min(double a, double b) { return a < b ? a : b; }
  static FOCAL_EXT_INLINE double max(double a, double b) { return a > b ? a : b; }
  static FOCAL_EXT_INLINE double select_positive(double z, double a, double b) { return z > 0. ? a : b; }
  static FOCAL_EXT_INLINE double bounded(double a) { return a < 1e300 ? a : 1e300; }
  static FOCAL_EXT_INLINE double fma(double a, double b, double c) { return a * b + c; }
  static FOCAL_EXT_INLINE void shares(double e, double& w, double& r) { w = e / (1. + e), r = 1. - w; }
  static FOCAL_EXT_INLINE double exp_neg(double y) { return ::exp(-y); }
  static FOCAL_EXT_INLINE double log1p_exp(double e, double) { return ::log1p(e); }
  static FOCAL_EXT_INLINE double pow_exp(Exponent gamma, double a, double b) { return ::exp(gamma.full * (a - b)); }
  static FOCAL_EXT_INLINE double pow(double u, Exponent gamma) { return ::pow(u, gamma.full); }
  static FOCAL_EXT_INLINE double product_or_zero(double a, double b) { return a == 0. ? 0. : a * b; }
  static FOCAL_EXT_INLINE void log_ratio(double u, double rest, double& ratio, double& inverse) {
    ratio = (u <= 0.5 ? -::log1p(-u) : -::log(rest)) / u;
    inverse = 1. / rest;
  }
};

}  // namespace focal_ext

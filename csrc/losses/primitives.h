// Owns: the arithmetic every loss formula is written in, one policy per number type and device.
// Must not know: any loss, any tensor, any loop.
//
// A policy `Math` supplies: value_t, limit(), abs, min, max, fma, select_positive(z, a, b) = z > 0 ? a : b, exp_neg(y)
// = exp(-y) for 0 <= y <= limit(), shares(e, w, r): r = 1 / (1 + e) and w = e r, log1p_exp(e, w) = log(1 + e),
// pow_exp(gamma, a, b) = exp(gamma (a - b)) for a <= 0 <= b, pow(u, gamma), on the host sqrt(u), and bounded(y) =
// min(y, a finite number >= 2 limit()) for y >= 0, anything for NaN. Beyond limit() exp(-y) rounds to 0, so clamping
// there changes no result. min and max keep the second argument when it is NaN. log_ratio(u, rest, ratio, inverse):
// ratio = -log(1 - u) / u and inverse = 1 / rest, for 0 < u < 1 and rest = 1 - u, anything outside. product_or_zero(a,
// b) = a b, 0 where a is 0 even if b is infinite.
#pragma once
#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define FOCAL_EXT_INLINE __host__ __device__ __forceinline__
#define FOCAL_EXT_NO_INLINE __host__ __device__ __noinline__
#else
#define FOCAL_EXT_INLINE inline __attribute__((always_inline))
#define FOCAL_EXT_NO_INLINE __attribute__((noinline))
// A term that is called instead of inlined is a loop that does not vectorise: eight times slower.
#define FOCAL_EXT_INLINE_LAMBDA __attribute__((always_inline))
#endif

namespace focal_ext {

FOCAL_EXT_INLINE uint32_t bits_of(float a) {
  uint32_t b;
  memcpy(&b, &a, 4);
  return b;
}
FOCAL_EXT_INLINE float float_of(uint32_t b) {
  float a;
  memcpy(&a, &b, 4);
  return a;
}

// An exponent in two floats: float(1.7) alone costs 28 ULP in the tail. Saturates where p^gamma is 0 or 1 to rounding
// anyway, so that gamma * q cannot overflow.
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

// p = sigmoid(z), q = sigmoid(-z) and their logarithms, from one exponential. A policy with a cheaper way specialises
// it.
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

// log(1+e) / w as above, relative error 2^-19.9: enough where the result is rounded to 2^-9 or 2^-12.
template <class Math>
FOCAL_EXT_INLINE typename Math::value_t log1p_polynomial_20_bits(typename Math::value_t w) {
  typename Math::value_t q = Math::constant(0.990582466f);
  q = Math::fma(q, w, Math::constant(-0.637922227f));
  q = Math::fma(q, w, Math::constant(0.522745609f));
  q = Math::fma(q, w, Math::constant(0.187532291f));
  q = Math::fma(q, w, Math::constant(0.338911027f));
  q = Math::fma(q, w, Math::constant(0.499816746f));
  return Math::fma(q, w, Math::constant(1.00000095f));
}

// How exact the arithmetic is: to a few ULP of float, or to 2^-17, for results that are rounded to bf16 or fp16.
enum class Precision { single, half };

// What a policy does with small p. full: right to the last subnormal. vanishing: for gamma >= 1, where results are 0
// before p is subnormal, p is clamped at exp(-87), which saves five instructions. falling: the same where results still
// fall with q: q is right to the last subnormal, p clamped at exp(-60). absent: for finite logits within limit() only,
// the same bits as vanishing and falling, without their clamps.
enum class Tail { full, vanishing, falling, absent };

// float on the host. Plain C++ without branch or call, so that a simd loop over it vectorises at every instruction-set
// level.
template <Precision precision, Tail tail>
struct Host {
  using value_t = float;
  static constexpr FOCAL_EXT_INLINE float limit() { return tail == Tail::full ? 105.f : 87.f; }
  static constexpr FOCAL_EXT_INLINE float constant(float c) { return c; }
  static FOCAL_EXT_INLINE float constant(Exponent gamma) { return gamma.high; }
  static FOCAL_EXT_INLINE float constant(Parameter a) { return a.single; }

  static FOCAL_EXT_INLINE float abs(float a) { return float_of(bits_of(a) & 0x7fffffffu); }
  static FOCAL_EXT_INLINE float min(float a, float b) { return a < b ? a : b; }
  static FOCAL_EXT_INLINE float max(float a, float b) { return a > b ? a : b; }
  static FOCAL_EXT_INLINE float select_positive(float z, float a, float b) { return z > 0.f ? a : b; }
  static FOCAL_EXT_INLINE float bounded(float y) { return tail == Tail::absent ? y : min_positive(y, 1e30f); }
  // On the bits, where positive floats are ordered like integers: one instruction instead of a compare and a blend.
  static FOCAL_EXT_INLINE float min_positive(float a, float b) {
    return float_of(bits_of(a) < bits_of(b) ? bits_of(a) : bits_of(b));
  }
  // max(0, a). Where no NaN comes on the bits: every negative float is a negative integer.
  static FOCAL_EXT_INLINE float positive_part(float a) {
    if constexpr (tail != Tail::absent) return max(0.f, a);
    const int32_t bits = int32_t(bits_of(a));
    return float_of(uint32_t(bits > 0 ? bits : 0));
  }
  // Contraction is off for the whole library: a product and a sum fuse here or nowhere, so AVX2 and AVX-512 agree to
  // the bit.
  static FOCAL_EXT_INLINE float fma(float a, float b, float c) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, c);
#else
    return a * b + c;
#endif
  }
  // r as 1 - w is exact to half a ULP, where w as e r would round once more: 10.1 -> 8.8 ULP at gamma 2 for the same
  // instructions.
  static FOCAL_EXT_INLINE void shares(float e, float& w, float& r) { w = e / (1.f + e), r = 1.f - w; }
  static FOCAL_EXT_INLINE float exp_neg(float y) {
    const float shifted = fma(y, -1.44269504f, kRound);
    if constexpr (precision == Precision::half)
      return scale(exp2_polynomial(fma(y, -1.44269504f, kRound - shifted)), shifted);
    else return scale(exp_polynomial(reduce(y, shifted)), shifted);
  }
  static FOCAL_EXT_INLINE float log1p_ratio(float w) {
    if constexpr (precision == Precision::half) return log1p_polynomial_20_bits<Host>(w);
    else return log1p_polynomial<Host>(w);
  }
  static FOCAL_EXT_INLINE float log1p_exp(float, float w) { return w * log1p_ratio(w); }

  static FOCAL_EXT_INLINE float pow_exp(Exponent gamma, float a, float b) {
    const float difference = a - b, high = gamma.high2 * difference;
    // of two negative numbers the bits' minimum is nearer to 0
    const float clamped = min_positive(high, -152.f), shifted = clamped + kRound;
    if constexpr (precision == Precision::half) {
      return scale(exp2_polynomial(clamped - (shifted - kRound)), shifted);
    } else {
      // gamma multiplies the rounding error of a - b, so the difference is kept in two floats. By Knuth's sum, as
      // either may be the larger: for |z| < 0.57 b is, and a shorter sum that takes a for it is off by 13.2 ULP at
      // gamma 5.
      const float minus_b = difference - a;
      const float rest = (a - (difference - minus_b)) - (b + minus_b);
      const float low = fma(gamma.low2, difference, fma(gamma.high2, rest, residual(gamma.high2, difference, high)));
      return scale(exp2_polynomial((clamped - (shifted - kRound)) + (high > -152.f ? low : 0.f)), shifted);
    }
  }

  // u^gamma = 2^(gamma (k + log2 m)), u = 2^k m; the integer part times gamma stays exact in two floats. Of halves as
  // exact: far from 0 all logits with a soft target share one u, and its error would decide the rounding of all.
  static FOCAL_EXT_INLINE float pow(float u, Exponent gamma) {
    const bool subnormal = u < 1.17549435e-38f;
    const float v = subnormal ? u * 4294967296.f : u;
    const int32_t shifted = int32_t(bits_of(v) - 0x3f3504f3u) >> 23;  // m in [sqrt(1/2), sqrt(2))
    const float m = float_of(bits_of(v) - (uint32_t(shifted) << 23)) - 1.f;
    const float k = float(shifted) - (subnormal ? 32.f : 0.f);
    const float high = gamma.high * k;
    const float low = residual(gamma.high, k, high) + (gamma.low * k + gamma.high * (m * log2_polynomial<Host>(m)));
    const bool underflows = high + low < -152.f;
    const float whole = underflows ? -152.f : high, part = underflows ? 0.f : low;
    const float rounded = whole + part + kRound;
    const float power = scale(exp2_polynomial<Precision::single>((whole - (rounded - kRound)) + part), rounded);
    return u >= 0.f ? power : __builtin_nanf("");
  }

  static FOCAL_EXT_INLINE float sqrt(float a) { return __builtin_sqrtf(a); }

  static FOCAL_EXT_INLINE float product_or_zero(float a, float b) { return a == 0.f ? 0.f : a * b; }

  // -log(1 - u) of any 0 <= u <= 1, by one polynomial: where rest = 2^k (1 + m) has k = 0, m is -u, which has digits
  // that rest has lost. The bits are mixed by hand: of a choice the compiler makes two polynomials.
  static FOCAL_EXT_INLINE float minus_log(float u, float rest) {
    const uint32_t least = 0x00800000u, bits = bits_of(rest) > least ? bits_of(rest) : least;  // a normal number
    const int32_t k = int32_t(bits - 0x3f3504f3u) >> 23;
    const uint32_t far = bits_of(float_of(bits - (uint32_t(k) << 23)) - 1.f), near = uint32_t(k == 0) * 0xffffffffu;
    const float m = float_of(((bits_of(u) | 0x80000000u) & near) | (far & ~near));
    return -0.693147182f * fma(m, log2_polynomial<Host>(m), float(k));
  }
  static FOCAL_EXT_INLINE void log_ratio(float u, float rest, float& ratio, float& inverse) {
    const float normal = max(1.17549435e-38f, rest);
    // rest = 2^k (1 + m), 1 + m in [sqrt(1/2), sqrt(2))
    const int32_t k = int32_t(bits_of(normal) - 0x3f3504f3u) >> 23;
    const float m = float_of(bits_of(normal) - (uint32_t(k) << 23)) - 1.f;
    const float far = -0.693147182f * fma(m, log2_polynomial<Host>(m), float(k)) / u;
    ratio = u <= 0.5f ? log1p_ratio(u) : far;
    inverse = 1.f / rest;
  }

 private:
  // a * b - product, exactly with a fused multiply-add, else by Dekker's splitting.
  static FOCAL_EXT_INLINE float residual(float a, float b, float product) {
#if defined(__FMA__) || defined(__aarch64__)
    return __builtin_fmaf(a, b, -product);
#else
    const float a_high = float_of(bits_of(a) & 0xfffff000u), b_high = float_of(bits_of(b) & 0xfffff000u);
    const float a_low = a - a_high, b_low = b - b_high;
    return ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low;
#endif
  }

  // 2^n p. With a full or falling tail without a second rounding before the last product: n + 64 or n + 40 is built as
  // an exponent, so the scale is a normal number and subnormal results round once. With an absent tail p and the result
  // are normal: a sum of integers is the product, on ports that have less to do.
  static FOCAL_EXT_INLINE float scale(float p, float shifted) {
    if constexpr (adds_exponents) return float_of(bits_of(p) + (bits_of(shifted) << 23));
    const float scaled = p * float_of(bits_of(shifted) << 23);
    return tail == Tail::full ? scaled * 5.42101086e-20f : tail == Tail::falling ? scaled * 9.09494702e-13f : scaled;
  }
  // With a fused multiply-add no logit is halfway between two n, which another kRound would round to another one.
#if defined(__FMA__) || defined(__aarch64__)
  static constexpr bool adds_exponents = tail == Tail::absent;
#else
  static constexpr bool adds_exponents = false;
#endif
  // 1.5 * 2^23: adding it rounds to an integer; 127 is the bias of the exponent, 64 and 40 keep a scale normal.
  static constexpr float kRound = 12582912.f + (adds_exponents             ? 0.f
                                                   : tail == Tail::full    ? 127.f + 64.f
                                                   : tail == Tail::falling ? 127.f + 40.f
                                                                           : 127.f);

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

  // 2^f for |f| <= 1/2; minimax, relative error 2^-18.4 at half precision. Of 0 exactly 1: a loss of 0.75 x is halfway
  // between two numbers of bf16 for every second x, and the last bit of a power that should be 1 would decide how it is
  // rounded.
  template <Precision of = precision>
  static FOCAL_EXT_INLINE float exp2_polynomial(float f) {
    if constexpr (of == Precision::half) {
      float p = 9.58285294e-3f;
      p = fma(p, f, 5.59064262e-2f);
      p = fma(p, f, 0.240240991f);
      p = fma(p, f, 0.693124175f);
      return fma(p, f, 1.f);
    } else {
      float p = 1.53457886e-4f;
      p = fma(p, f, 1.33999578e-3f);
      p = fma(p, f, 9.61848925e-3f);
      p = fma(p, f, 5.55032871e-2f);
      p = fma(p, f, 0.240226469f);
      p = fma(p, f, 0.693147206f);
      return fma(p, f, 1.f);
    }
  }
};

using HostFloat = Host<Precision::single, Tail::full>;

// Without |z|: e = exp(-z), p = 1 / (1 + e), q = e p, and min(p, q) is the polynomial's argument on either side.
template <Precision precision, Tail tail>
  requires(tail != Tail::full)
struct Sigmoid<Host<precision, tail>> {
  using Math = Host<precision, tail>;
  float log1p_e, p, q;
  explicit FOCAL_EXT_INLINE Sigmoid(float z) {
    constexpr float lowest = tail == Tail::falling ? -60.f : -87.f, highest = tail == Tail::falling ? 105.f : 87.f;
    const float e = Math::exp_neg(tail == Tail::absent ? z : Math::min(highest, Math::max(lowest, z)));
    p = 1.f / (1.f + e), q = e * p;
    w_ = Math::min_positive(p, q), ratio_ = Math::log1p_ratio(w_);
    log1p_e = w_ * ratio_;
  }
  FOCAL_EXT_INLINE float softplus(float z) const { return Math::fma(w_, ratio_, Math::positive_part(z)); }
  FOCAL_EXT_INLINE float negative_part(float z) const { return Math::select_positive(z, 0.f, z); }

 private:
  float w_, ratio_;
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
  static FOCAL_EXT_INLINE double sqrt(double a) { return ::sqrt(a); }
  static FOCAL_EXT_INLINE double product_or_zero(double a, double b) { return a == 0. ? 0. : a * b; }
  static FOCAL_EXT_INLINE void log_ratio(double u, double rest, double& ratio, double& inverse) {
    ratio = (u <= 0.5 ? -::log1p(-u) : -::log(rest)) / u;
    inverse = 1. / rest;
  }
};

}  // namespace focal_ext

// Owns: the arithmetic policies of the CUDA kernels.
// Must not know: any loss, any tensor, any loop.
//
// DeviceFloat is the complete float policy, right for every logit; careful_float.h adds large gammas. Stream<T, grade>
// is the policy of the hot loop: one or two numbers at a time, no clamps, so +inf and NaN give a NaN value and the loop
// that uses it recomputes those with DeviceFloat.
#pragma once
#include "instructions.h"

namespace focal_ext {

constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

// 2^(scale (a + b)) with the scale in two floats and |b| at most rounding of a: the product's tail enters as a factor 1
// + ln 2 tail.
template <class T>
FOCAL_EXT_INLINE T exp2_product(float scale, float scale_low, T a, T b) {
  using L = Lanes<T>;
  const T high = L::spread(scale) * a;
  const T tail =
      fused(L::spread(scale), b, fused(L::spread(scale_low), a, fused(L::spread(scale), a, L::spread(-1.f) * high)));
  const T power = L::each([](float t) { return exp2_approx(t); }, high);
  return fused(power, L::spread(kLn2) * tail, power);
}

// exp(gamma (a - b)) for a <= 0 <= b and gamma a that is finite. The difference is kept in two floats: gamma multiplies
// its rounding error.
template <class T>
FOCAL_EXT_INLINE T exp_product(Exponent gamma, T a, T b) {
  const T difference = a - b;
  return exp2_product(gamma.high2, gamma.low2, difference, (a - difference) - b);
}

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

// -log(1 - u) / u and 1 / rest, rest = 1 - u, with one reciprocal. Up to 1/2 the polynomial of log(1 + e) serves, past
// it log2 is exact enough.
template <class Math, class T>
FOCAL_EXT_INLINE void log_ratio_approx(T u, T rest, T& ratio, T& inverse) {
  using L = Lanes<T>;
  const T both = L::each([](float a, float b) { return reciprocal_approx(a <= 0.5f ? b : a * b); }, u, rest);
  const T far = L::spread(-kLn2) * L::each([](float a) { return log2_approx(a); }, rest) * (both * rest);
  ratio = L::each([](float a, float n, float f) { return a <= 0.5f ? n : f; }, u, Math::polynomial(u), far);
  inverse = L::each([](float a, float b) { return a <= 0.5f ? b : a * b; }, u, both);
}

struct DeviceFloat {
  using value_t = float;
  static FOCAL_EXT_INLINE float limit() { return 105.f; }
  static FOCAL_EXT_INLINE float constant(float c) { return c; }
  static FOCAL_EXT_INLINE float constant(Exponent gamma) { return gamma.high; }
  static FOCAL_EXT_INLINE float constant(Parameter a) { return a.single; }
  static FOCAL_EXT_INLINE float abs(float a) { return ::fabsf(a); }
  static FOCAL_EXT_INLINE float min(float a, float b) { return a < b ? a : b; }
  static FOCAL_EXT_INLINE float max(float a, float b) { return a > b ? a : b; }
  static FOCAL_EXT_INLINE float bounded(float a) { return a < 1e38f ? a : 1e38f; }
  static FOCAL_EXT_INLINE float select_positive(float z, float a, float b) { return z > 0.f ? a : b; }
  static FOCAL_EXT_INLINE float fma(float a, float b, float c) { return fused(a, b, c); }
  static FOCAL_EXT_INLINE void shares(float e, float& w, float& r) { r = reciprocal_approx(1.f + e), w = e * r; }
  static FOCAL_EXT_INLINE float polynomial(float w) { return log1p_polynomial<DeviceFloat>(w); }
  static FOCAL_EXT_INLINE float log1p_exp(float, float w) { return w * polynomial(w); }
  static FOCAL_EXT_INLINE float product_or_zero(float a, float b) { return a == 0.f ? 0.f : a * b; }
  static FOCAL_EXT_INLINE void log_ratio(float u, float rest, float& ratio, float& inverse) {
    log_ratio_approx<DeviceFloat>(u, rest, ratio, inverse);
  }
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
    const int32_t shifted = int32_t(bits_of(v) - 0x3f3504f3u) >> 23;  // 1 + m in [sqrt(1/2), sqrt(2))
    const float m = float_of(bits_of(v) - (uint32_t(shifted) << 23)) - 1.f;
    // float(shifted) by a sum: the conversion is a slow instruction
    const float whole = float_of(uint32_t(shifted) + 0x4b400000u) - 12582912.f;
    const float k = whole - (subnormal ? 32.f : 0.f);
    const float fraction = m * log2_polynomial<DeviceFloat>(m);
    const float logarithm = k + fraction;
    const float power = exp2_product(gamma.high, gamma.low, logarithm, (k - logarithm) + fraction);
    return !(u >= 0.f) ? float_of(0x7fc00000u) : u == 0.f ? 0.f : power;
  }
};

// How exact the hot loop is before the result is rounded to the logits' type.
enum class Grade { single, half };

template <class T, Grade grade>
struct Stream : Lanes<T> {
  using value_t = T;
  static FOCAL_EXT_INLINE T constant(float c) { return Lanes<T>::spread(c); }
  static FOCAL_EXT_INLINE T constant(Exponent gamma) { return Lanes<T>::spread(gamma.high); }
  static FOCAL_EXT_INLINE T constant(Parameter a) { return Lanes<T>::spread(a.single); }
  static FOCAL_EXT_INLINE T bounded(T a) { return a; }
  static FOCAL_EXT_INLINE T product_or_zero(T a, T b) { return a * b; }
  static FOCAL_EXT_INLINE T fma(T a, T b, T c) { return fused(a, b, c); }
  static FOCAL_EXT_INLINE T min(T a, T b) {
    return Stream::each([](float x, float y) { return ::fminf(x, y); }, a, b);
  }
  static FOCAL_EXT_INLINE T max(T a, T b) {
    return Stream::each([](float x, float y) { return max_or_nan(x, y); }, a, b);
  }
  static FOCAL_EXT_INLINE T select_positive(T z, T a, T b) {
    return Stream::each([](float z, float x, float y) { return z > 0.f ? x : y; }, z, a, b);
  }
  static FOCAL_EXT_INLINE T polynomial(T w) {
    if constexpr (grade == Grade::single) return log1p_polynomial<Stream>(w);
    else return log1p_polynomial_half<Stream>(w);
  }
  static FOCAL_EXT_INLINE void log_ratio(T u, T rest, T& ratio, T& inverse) {
    log_ratio_approx<Stream>(u, rest, ratio, inverse);
  }
  static FOCAL_EXT_INLINE T pow_exp(Exponent gamma, T a, T b) { return exp_product(gamma, a, b); }
  static FOCAL_EXT_INLINE T pow(T u, Exponent gamma) {
    return Stream::each([gamma](float a) { return DeviceFloat::pow(a, gamma); }, u);
  }
};

// Without |z|: p = 1 / (1 + exp(-z)) needs no selection by sign, and min(p, q) is the polynomial's argument either way.
// Single grade: exp(-z) corrected as in DeviceFloat, q = exp(-z) p. Beyond 88, where p rounds to 0, the exponential
// must stay finite. Half grade: q = 1 - p, absolute error 2^-23 where p is near 1 and q only adds to it. It multiplies
// the logit, so this relies on rcp(1) = 1 exactly, which tests/gpu checks on the chip.
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
    } else {
      p = Math::each(reciprocal, one + Math::each(exp2, z * Math::constant(-kLog2E)));
      q = one - p;
    }
    w_ = Math::min(p, q);
    polynomial_ = Math::polynomial(w_);
    log1p_e = w_ * polynomial_;
  }
  FOCAL_EXT_INLINE T softplus(T z) const {
    return Math::fma(w_, polynomial_, Math::each([](float x) { return ::fmaxf(x, 0.f); }, z));
  }
  // log p = negative_part - log1p_e; below -88 the softplus that multiplies p^gamma is 0.
  FOCAL_EXT_INLINE T negative_part(T z) const {
    return Math::each([](float x) { return ::fmaxf(::fminf(x, 0.f), -88.f); }, z);
  }
  FOCAL_EXT_INLINE T whole_negative_part(T z) const { return Math::min(z, Math::constant(0)); }
  // q is 0 for single grade below -88, where p and softplus are too.
  FOCAL_EXT_INLINE T q_everywhere(T z) const {
    if constexpr (grade == Grade::half) return q;
    else return Math::each([](float x, float y) { return x < -87.f ? 1.f : y; }, z, q);
  }

 private:
  T w_, polynomial_;
};

// For t <= 1/2: softplus(x) - t x cancels at most two thirds of its terms. Infinite logits give NaN.
template <class T, Grade grade>
struct CrossEntropy<Stream<T, grade>> {
  using Math = Stream<T, grade>;
  T ce, slope;
  FOCAL_EXT_INLINE CrossEntropy(const Sigmoid<Math>& s, T x, T t, T)
      : ce(Math::fma(Math::constant(0) - t, x, s.softplus(x))), slope(s.p - t) {}
};

}  // namespace focal_ext

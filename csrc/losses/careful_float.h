// Owns: the policy of the CUDA kernels' careful path: DeviceFloat, and as exact where gamma is large.
// Must not know: any loss, any tensor, any loop.
//
// p^gamma = exp(gamma log p) multiplies the relative error of log p by gamma |log p|, up to 87 before the power leaves
// float's range. ex2 alone is off by 2 units, so a large gamma needs a logarithm that is made of products and sums, in
// two floats.
#pragma once
#include "device_primitives.h"

namespace focal_ext {

// Above it no tile streams: the hot loop's p^gamma is off by about 3 gamma units of 2^-23, a soft target's by 5 gamma,
// and 40 is the limit.
constexpr float kSteepGamma = 6;

// high + low, |low| at most half a unit of high.
struct Sum {
  float high, low;
};

// |a| >= |b| (Dekker).
FOCAL_EXT_INLINE Sum sum_of_ordered(float a, float b) {
  const float sum = a + b;
  return {sum, b - (sum - a)};
}

// Any order (Knuth).
FOCAL_EXT_INLINE Sum sum_of(float a, float b) {
  const float sum = a + b, b_in_sum = sum - a;
  return {sum, (a - (sum - b_in_sum)) + (b - b_in_sum)};
}

// exp(-y) = 2^-n exp(r + rest) for 0 <= y <= 126 ln 2, relative error 2^-26.
FOCAL_EXT_INLINE Sum exp_neg_sum(float y) {
  constexpr float kRound = 12582912.f;  // 1.5 2^23: adding it rounds to an integer, which is then in the low bits
  const float shifted = fused(y, kLog2E, kRound), n = shifted - kRound;
  const float r = fused(n, 0.693359375f, -y), rest = n * -2.12194440e-4f;  // Cody-Waite: r is exact
  const float both = r + rest;
  // (exp(b) - 1 - b) / b^2 for |b| <= ln 2 / 2; minimax, 2^-28.2 of exp(b)
  float q = 1.38143241e-3f;
  q = fused(q, both, 8.36885069e-3f);
  q = fused(q, both, 4.16683983e-2f);
  q = fused(q, both, 0.166665196f);
  q = fused(q, both, 0.49999994f);
  const Sum linear = sum_of_ordered(1.f, r);
  const Sum power = sum_of_ordered(linear.high, fused(both * both, q, linear.low + rest));
  const float scale = float_of((127u - bits_of(shifted)) << 23);
  return {power.high * scale, power.low * scale};
}

FOCAL_EXT_INLINE Sum operator+(Sum a, Sum b) {
  const Sum sum = sum_of(a.high, b.high);
  return sum_of_ordered(sum.high, sum.low + (a.low + b.low));
}

FOCAL_EXT_INLINE Sum operator*(Sum a, Sum b) {
  const float high = a.high * b.high;
  return {high, fused(a.high, b.high, -high) + fused(a.high, b.low, a.low * b.high)};
}

// 2 atanh(s), s = n / d in two floats: log((d + n) / (d - n)) for 0 <= s <= 1/3, relative error 2^-26 beside that of s.
FOCAL_EXT_INLINE Sum twice_atanh(Sum n, Sum d) {
  const float inverse = reciprocal_approx(d.high);
  const float s = n.high * inverse;
  const float s_low = (fused(-s, d.high, n.high) + fused(-s, d.low, n.low)) * inverse;
  const float square = s * s;
  // (2 atanh(s) - 2 s) / s^3 for 0 <= s <= 1/3; minimax, 2^-27.7 of 2 atanh(s)
  float q = 0.280312747f;
  q = fused(q, square, 0.279978633f);
  q = fused(q, square, 0.400217712f);
  q = fused(q, square, 0.666664124f);
  return sum_of_ordered(s + s, fused(s * square, q, fused(s_low + s_low, square, s_low + s_low)));
}

FOCAL_EXT_INLINE Sum log1p_sum(Sum e) {
  const Sum d = sum_of_ordered(2.f, e.high);
  return twice_atanh(e, {d.high, d.low + e.low});
}

struct CarefulFloat : DeviceFloat {
  static FOCAL_EXT_INLINE bool is_steep(Exponent gamma) { return gamma.high > kSteepGamma; }

  // sigmoid(z)^gamma, negative_part = min(z, 0), also bounded by -limit(), where a steep power is 0.
  static FOCAL_EXT_INLINE float pow_sigmoid(Exponent gamma, float z, float negative_part) {
    const Sum log1p_e = log1p_sum(exp_neg_sum(min(kLast, abs(z))));
    const Sum log_p = sum_of(max(-limit(), negative_part), -log1p_e.high);
    return power(gamma, {log_p.high, log_p.low - log1p_e.low});
  }

  // u^gamma, u = p (1-t) + q t = n / d with d = 1 + e and n = 2^-k v, d / 2 <= v <= d: log u = -k ln 2 - log(d / v).
  static FOCAL_EXT_INLINE float pow_soft(Exponent gamma, float x, float t) {
    const Sum e = exp_neg_sum(min(kLast, abs(x))), low{t, 0.f}, high = sum_of(1.f, -t);
    const Sum n = (x > 0.f ? high : low) + e * (x > 0.f ? low : high), d = Sum{1.f, 0.f} + e;
    const uint32_t exponent = bits_of(d.high * reciprocal_approx(n.high)) >> 23;
    const float scale = float_of(exponent << 23), k = float_of(exponent + 0x4b400000u) - (12582912.f + 127.f);
    const Sum v{n.high * scale, n.low * scale}, minus_v{-v.high, -v.low};
    const Sum rest = twice_atanh(d + minus_v, d + v) + Sum{0.f, k * -2.12194440e-4f};
    const Sum minus_log_u = Sum{k * 0.693359375f, 0.f} + rest;
    const float steep = power(gamma, {-minus_log_u.high, -minus_log_u.low});
    // Past 2^30 a steep power is 0; without a sign u^gamma is no number.
    return n.high < 0.f ? float_of(0x7fc00000u) : n.high < 9.31322575e-10f ? 0.f : steep;
  }

 private:
  static constexpr float kLast = 87.336540f;  // past it exp(-|z|) < 2^-126

  // The square of a root, which is above 2^-126 where the power no longer is: ex2 would make that 0, and gamma
  // multiplies it.
  static FOCAL_EXT_INLINE float power(Exponent gamma, Sum logarithm) {
    const float root = exp2_product(0.5f * gamma.high2, 0.5f * gamma.low2, logarithm.high, logarithm.low);
    return root * root;
  }
};

}  // namespace focal_ext

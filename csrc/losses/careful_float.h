// Owns: the policy of the CUDA kernels' careful path: DeviceFloat, and as exact where gamma is large.
// Must not know: any loss, any tensor, any loop.
//
// p^gamma = exp(gamma log p) multiplies the relative error of log p by gamma |log p|, up to 87 before the power leaves float's range.
// ex2 alone is off by 2 units, so a large gamma needs a logarithm that is made of products and sums, in two floats.
#pragma once
#include "device_primitives.h"

namespace focal_ext {

// Above it no tile streams: the hot loop's p^gamma is off by about 3 gamma units of 2^-23, and 40 is the limit.
constexpr float kSteepGamma = 10;

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

// log(1 + e) = 2 atanh(s), s = e / (2 + e) in two floats, relative error 2^-26 beside that of e.
FOCAL_EXT_INLINE Sum log1p_sum(Sum e) {
  const Sum d = sum_of_ordered(2.f, e.high);
  const float inverse = reciprocal_approx(d.high);
  const float s = e.high * inverse;
  const float s_low = (fused(-s, d.high, e.high) + fused(-s, d.low + e.low, e.low)) * inverse;
  const float square = s * s;
  // (2 atanh(s) - 2 s) / s^3 for 0 <= s <= 1/3; minimax, 2^-27.7 of 2 atanh(s)
  float q = 0.280312747f;
  q = fused(q, square, 0.279978633f);
  q = fused(q, square, 0.400217712f);
  q = fused(q, square, 0.666664124f);
  return sum_of_ordered(s + s, fused(s * square, q, fused(s_low + s_low, square, s_low + s_low)));
}

struct CarefulFloat : DeviceFloat {
  static FOCAL_EXT_INLINE bool is_steep(Exponent gamma) { return gamma.high > kSteepGamma; }

  // sigmoid(z)^gamma, negative_part = min(z, 0), also bounded by -limit(), where a steep power is 0.
  static FOCAL_EXT_INLINE float pow_sigmoid(Exponent gamma, float z, float negative_part) {
    const Sum log1p_e = log1p_sum(exp_neg_sum(min(87.336540f, abs(z))));  // past which exp(-|z|) < 2^-126
    const Sum log_p = sum_of(max(-limit(), negative_part), -log1p_e.high);
    // The square of a root, which is above 2^-126 where the power no longer is: ex2 would make that 0, and gamma multiplies it.
    const float root = exp2_product(0.5f * gamma.high2, 0.5f * gamma.low2, log_p.high, log_p.low - log1p_e.low);
    return root * root;
  }
};

}  // namespace focal_ext

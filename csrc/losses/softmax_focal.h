// Owns: the softmax focal loss of one row of logits, value and derivative, for class ids, smoothed class ids and dense
// targets.
// Must not know: how logits are stored, who weighs rows, how anything is summed.
#pragma once
#include "modulator.h"

namespace focal_ext {

// The logits x of a row enter as e_c = exp(x_c - m), m the largest of them. For one class c, with S the sum of all e:
//   p = e_c / S,   u = 1 - p = (sum of the other e) / S,   L = -log p = (m - x_c) + log S
//   f = u^gamma L,   df/dx_c = -slope u,   df/dx_j = slope p_j (j != c),   slope = u^gamma (1 + gamma p L / u)
// The loss of an id y is alpha_y f_y; that of dense targets is sum_c alpha_c t_c f_c.
//
// Nothing cancels, given the sum of the others: it is added up without e_c where e_c is the largest, and is S - e_c >=
// S / 2 elsewhere.

// exp(x - m) for x <= m: the rounding of the difference is corrected, or a small e would carry |x - m| / 2 units of
// error. 1 for x = m and 0 below it where m is infinite.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE T exp_below(T x, T m) {
  const T zero = Math::constant(0), limit = Math::constant(Math::limit()), difference = m - x;
  const T minus_x = difference - m;
  const T rest = (m - (difference - minus_x)) - (x + minus_x);  // difference + rest = m - x exactly (Knuth)
  const bool equal = x == m;
  const T e = Math::exp_neg(Math::min(limit, equal ? zero : difference));
  return Math::fma(e, equal || !(difference < limit) ? zero : zero - rest, e);
}

// The same bits for a finite m, without a look at x = m.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE T exp_below_finite(T x, T m) {
  const T zero = Math::constant(0), limit = Math::constant(Math::limit()), difference = m - x;
  const T minus_x = difference - m;
  const T rest = (m - (difference - minus_x)) - (x + minus_x);
  const bool beyond = limit < difference;
  const T e = Math::exp_neg(beyond ? limit : difference);
  return Math::fma(e, beyond ? zero : zero - rest, e);
}

// log S for S = 1 + tail.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE T log_of_sum(T sum, T tail) {
  return minus_log_of_rest<Math>(tail / sum, Math::constant(1) / sum);
}

// What infinity stands for where it meets a 0, or would: an infinite L and its p. NaN stays.
template <class T>
constexpr T kAlmostInfinite = sizeof(T) == 8 ? T(1e300) : T(1e36f);
template <class T>
FOCAL_EXT_INLINE T almost_finite(T a) {
  return a > kAlmostInfinite<T> ? kAlmostInfinite<T> : a;
}

// u^gamma, 0 for 0 at any gamma above 0. Where u rounds to 1 its logarithm is still log(1 - p), and a large gamma shows
// it.
template <class Math, class Modulator, class T>
FOCAL_EXT_INLINE T power_of_rest(T p, T u, const Modulator& modulator) {
  const T half = Math::constant(0.5f), small = p < half ? p : half;
  const T near_one = modulator.template of_logarithm<Math>(u, minus_log_of_rest<Math>(small, u)),
          power = modulator.template of<Math>(u);
  if (u == Math::constant(0) && modulator.template gamma<Math>() > Math::constant(0)) return u;
  return p < half ? near_one : power;
}

// What one class contributes, without alpha and t.
template <class T>
struct SoftmaxTerm {
  T value, slope, p, u;
};

// own: e_c; others: the sum of the other e; distance: m - x_c.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE SoftmaxTerm<T> softmax_focal_term(
    T own, T others, T sum, T distance, T log_sum, const Modulator& modulator) {
  const T p = own / sum, u = others / sum, entropy = distance + log_sum;
  if constexpr (Modulator::is_one) return {entropy, Math::constant(1), p, u};
  const T power = power_of_rest<Math>(p, u, modulator);
  const T ratio = u > Math::constant(0) ? almost_finite(entropy) / u : Math::constant(1) + u;  // L / u -> 1; NaN stays
  return {power * entropy, power * Math::fma(modulator.template gamma<Math>() * p, ratio, Math::constant(1)), p, u};
}

// The gradient of a row with a class id, times what multiplies its loss: df/dx_j = others e_j - shift (j != y), df/dx_y
// = own.
template <class T>
struct SoftmaxRow {
  T value, others, shift, own;
};

template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE SoftmaxRow<T> softmax_focal_row(T own, T others, T distance, const Modulator& modulator) {
  const T sum = own + others, tail = distance == Math::constant(0) ? others : sum - Math::constant(1);
  const SoftmaxTerm<T> term =
      softmax_focal_term<Math>(own, others, sum, distance, log_of_sum<Math>(sum, tail), modulator);
  return {term.value, term.slope / sum, Math::constant(0), Math::constant(0) - term.slope * term.u};
}

// Label smoothing s: the cross entropy's target becomes t = (1-s) [c = y] + s / C, the modulator keeps the hard label.
// With H = sum_c t_c (-log p_c) and q_j = e_j / (sum of the others), the shares of the others:
//   f = u^gamma H,   df/dx_j = u^gamma (p_j - s / C + gamma p H q_j),
//   df/dx_y = u^gamma (p (1 - t_y) - u t_y - gamma p H)
// mean_distance: the mean of m - x_c over the row. kept: 1 - s, from s in double precision: of a rounded s near 1 it
// has few digits.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE SoftmaxRow<T> smoothed_softmax_focal_row(
    T own, T others, T distance, T mean_distance, T smoothing, T kept, T classes, const Modulator& modulator) {
  const T zero = Math::constant(0), one = Math::constant(1);
  const T sum = own + others, tail = distance == zero ? others : sum - one, log_sum = log_of_sum<Math>(sum, tail);
  const T p = own / sum, u = others / sum;
  const T entropy = (kept == zero ? zero : kept * (distance + log_sum)) + smoothing * (mean_distance + log_sum);
  const T power = power_of_rest<Math>(p, u, modulator), share = smoothing / classes;
  const T bend = power * modulator.template gamma<Math>() * p * almost_finite(entropy);
  // Floored at the smallest normal number, 87 or 708 below x_y: the gradients of the others sum to at most the right
  // sum there.
  const T floored = Math::max(sizeof(T) == 8 ? T(2.2250738585072014e-308) : T(1.17549435e-38f), others);
  const T value = power == zero ? zero : power * entropy;  // the winning side at +inf
  return {value, power / sum + almost_finite(bend / floored), power * share,
      power * (p * (smoothing - share) - u * (kept + share)) - bend};
}

// Calls f(modulator) with the cheapest modulator for gamma.
template <class F>
auto with_modulator(double gamma, F&& f) {
  const Exponent exponent(gamma);
  if (gamma == 0) return f(WholeModulator<0>(exponent));
  if (gamma == 1) return f(WholeModulator<1>(exponent));
  if (gamma == 2) return f(WholeModulator<2>(exponent));
  return f(AnyModulator(exponent));
}

}  // namespace focal_ext

// Owns: the sigmoid focal loss of one logit, value and derivative (Lin et al. 2017, eq. 5), for hard labels and soft targets.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "primitives.h"

namespace focal_ext {

template <class T>
struct ValueAndGradient {
  T value, gradient;
};

// p^gamma. Whole gammas that detectors use are products; every other gamma is one exponential of a logarithm that is at hand.
template <int gamma_>
struct WholeModulator {
  static constexpr bool is_one = gamma_ == 0;  // p^0 = 1: plain cross entropy
  explicit WholeModulator(Exponent) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const { return Math::constant(gamma_); }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T p, T, T) const { return of<Math>(p); }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const {
    if constexpr (gamma_ == 0) return Math::constant(1);
    else if constexpr (gamma_ == 1) return u;
    else return u * u;
  }
};

struct AnyModulator {
  static constexpr bool is_one = false;
  Exponent exponent;
  explicit AnyModulator(Exponent gamma) : exponent(gamma) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const { return Math::constant(exponent); }
  // p^gamma with log p = negative_part - log1p_e
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T, T negative_part, T log1p_e) const { return Math::pow_exp(exponent, negative_part, log1p_e); }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const { return Math::pow(u, exponent); }
};

// Calls f(modulator) with the cheapest modulator for gamma.
template <class F>
auto with_modulator(double gamma, F&& f) {
  const Exponent exponent(gamma);
  if (gamma == 0) return f(WholeModulator<0>(exponent));
  if (gamma == 1) return f(WholeModulator<1>(exponent));
  if (gamma == 2) return f(WholeModulator<2>(exponent));
  return f(AnyModulator(exponent));
}

// What every term needs, from one exponential: e = exp(-|z|), r = 1 / (1 + e), w = e r, p = sigmoid(z), q = sigmoid(-z).
template <class Math>
struct Sigmoid {
  using T = typename Math::value_t;
  T size, log1p_e, p, q;
  explicit FOCAL_EXT_INLINE Sigmoid(T z) {
    size = Math::min(Math::constant(Math::limit()), Math::abs(z));
    const T e = Math::exp_neg(size);
    T w, r;
    Math::shares(e, w, r);
    log1p_e = Math::log1p_exp(e, w);
    p = Math::select_positive(z, r, w);
    q = Math::select_positive(z, w, r);
  }
  FOCAL_EXT_INLINE T softplus(T z) const { return Math::max(z, Math::constant(0)) + log1p_e; }
  FOCAL_EXT_INLINE T negative_part(T z) const { return Math::select_positive(z, Math::constant(0), Math::constant(0) - size); }
};

// Focal loss of a logit z that should be low (z = x for a negative, -x for a positive).
//   f(z) = p^gamma softplus(z),   f'(z) = p^gamma (gamma q softplus(z) + p),   softplus(z) = max(z, 0) + log(1 + e)
// A negative contributes (1-alpha) f(x) and (1-alpha) f'(x), a positive alpha f(-x) and -alpha f'(-x).
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE ValueAndGradient<T> sigmoid_focal_hard(T z, const Modulator& modulator) {
  const Sigmoid<Math> s(z);
  const T softplus = s.softplus(z);
  if constexpr (Modulator::is_one) return {softplus, s.p};
  const T power = modulator.template of_probability<Math>(s.p, s.negative_part(z), s.log1p_e);
  // q is 0 beyond the limit: the clamp only keeps 0 * inf from an infinite logit's gradient.
  const T bounded = Math::bounded(softplus);
  return {power * softplus, power * Math::fma(modulator.template gamma<Math>() * s.q, bounded, s.p)};
}

// Soft target t (torchvision's definition): u = p (1-t) + q t = 1 - p_t, ce = log(1 + e) + (x > 0 ? x (1-t) : -x t),
//   loss = u^gamma ce,   d/dx = u^gamma (gamma (1-2t) h ce + p (1-t) - q t),   h = p q / u
// without alpha_t = alpha t + (1-alpha) (1-t), which is the caller's coefficient.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE ValueAndGradient<T> sigmoid_focal_soft(T x, T t, const Modulator& modulator) {
  const Sigmoid<Math> s(x);
  const T zero = Math::constant(0), one = Math::constant(1);
  const T not_t = one - t;
  const T share = Math::select_positive(x, not_t, t);
  const T linear = share == zero ? zero : Math::abs(x) * share;  // the winning side at +-inf: no 0 * inf
  const T ce = s.log1p_e + linear;
  const T slope = s.p * not_t - s.q * t;
  if constexpr (Modulator::is_one) return {ce, slope};
  const T u = Math::fma(s.p, not_t, s.q * t);
  const T h = t == zero ? s.q : t == one ? s.p : s.p * s.q / u;  // the limits where u underflows
  // At a hard target log u is at hand, where u itself may round to 1.
  const bool hard = t == zero || t == one;
  const T z = t == one ? zero - x : x;
  const T power = hard ? modulator.template of_probability<Math>(u, s.negative_part(z), s.log1p_e) : modulator.template of<Math>(u);
  const T bounded = Math::min(ce, Math::constant(2 * Math::limit()));  // ce may be negative: t is unchecked
  const T infinity = Math::constant(__builtin_inff());
  // At +-inf the loss is infinite even where u^gamma underflows.
  return {linear == infinity ? linear : power * ce, power * Math::fma(modulator.template gamma<Math>() * (not_t - t) * h, bounded, slope)};
}

}  // namespace focal_ext

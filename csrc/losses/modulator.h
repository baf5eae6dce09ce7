// Owns: the parts that losses share: the sigmoid and its logarithm, cross entropy, and p^gamma.
// Must not know: any one loss.
#pragma once
#include "factors.h"
#include "primitives.h"

namespace focal_ext {

template <class T>
struct ValueAndGradient {
  T value, gradient;
};

// p^gamma. Whole gammas that detectors use are products; every other gamma is one exponential of a logarithm that is at hand.
template <int gamma_>
struct WholeModulator {
  static_assert(gamma_ == 0 || gamma_ == 1 || gamma_ == 2 || gamma_ == 4);
  static constexpr bool is_one = gamma_ == 0;  // p^0 = 1: plain cross entropy
  static constexpr Tail tail = gamma_ >= 1 ? Tail::vanishing : Tail::full;
  explicit WholeModulator(Exponent) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const {
    return Math::constant(gamma_);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T, T p, T, T) const {
    return of<Math>(p);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_soft(T, T, T u) const {
    return of<Math>(u);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_logarithm(T u, T) const {
    return of<Math>(u);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const {
    if constexpr (gamma_ == 0) return Math::constant(1);
    else if constexpr (gamma_ == 1) return u;
    else if constexpr (gamma_ == 2) return u * u;
    else return (u * u) * (u * u);
  }
};

// gamma 0 or 1, told at run time: for kernels that each hold a hot loop, where a choice between two numbers costs less than another loop.
struct ZeroOrOneModulator {
  static constexpr bool is_one = false;
  static constexpr Tail tail = Tail::full;
  float exponent;
  explicit ZeroOrOneModulator(Exponent gamma) : exponent(gamma.high) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const {
    return Math::constant(exponent);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T, T p, T, T) const {
    return of<Math>(p);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_soft(T, T, T u) const {
    return of<Math>(u);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_logarithm(T u, T) const {
    return of<Math>(u);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const {
    return exponent == 0 ? Math::constant(1) : u;
  }
};

struct AnyModulator {
  static constexpr bool is_one = false;
  static constexpr Tail tail = Tail::full;
  Exponent exponent;
  explicit AnyModulator(Exponent gamma) : exponent(gamma) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const {
    return Math::constant(exponent);
  }
  // p^gamma with p = sigmoid(z), log p = negative_part - log1p_e. A policy may have a more exact way for a large gamma.
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T z, T, T negative_part, T log1p_e) const {
    if constexpr (requires { Math::pow_sigmoid(exponent, z, negative_part); })
      if (Math::is_steep(exponent)) return Math::pow_sigmoid(exponent, z, negative_part);
    return Math::pow_exp(exponent, negative_part, log1p_e);
  }
  // u^gamma with u = p (1-t) + q t
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_soft(T x, T t, T u) const {
    if constexpr (requires { Math::pow_soft(exponent, x, t); })
      if (Math::is_steep(exponent)) return Math::pow_soft(exponent, x, t);
    return of<Math>(u);
  }
  // u^gamma with log u = -minus_log, where u rounds to 1
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_logarithm(T, T minus_log) const {
    return Math::pow_exp(exponent, Math::constant(0), minus_log);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const {
    return Math::pow(u, exponent);
  }
};

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
  FOCAL_EXT_INLINE T softplus(T z) const { return Math::select_positive(z, z, Math::constant(0)) + log1p_e; }
  FOCAL_EXT_INLINE T negative_part(T z) const { return Math::select_positive(z, Math::constant(0), Math::constant(0) - size); }
  // For what grows with |z| on the winning side. A power of 1e-16 is 1 to rounding, one of 1e20 is steep: their product with it is finite.
  FOCAL_EXT_INLINE T whole_negative_part(T z) const { return Math::max(Math::constant(-1e18f), Math::min(Math::constant(0), z)); }
  FOCAL_EXT_INLINE T q_everywhere(T) const { return q; }
};

// Binary cross entropy of a logit and a target t in [0, 1]: ce = log(1 + e) + (x > 0 ? x (1-t) : -x t), slope = p (1-t) - q t.
// `rest` is 1 - t, of which a smoothed t near 1 has lost the digits.
template <class Math>
struct CrossEntropy {
  using T = typename Math::value_t;
  T linear, ce, slope;
  FOCAL_EXT_INLINE CrossEntropy(const Sigmoid<Math>& s, T x, T t, T rest) {
    const T zero = Math::constant(0);
    const T share = Math::select_positive(x, rest, t);
    linear = share == zero ? zero : Math::abs(x) * share;  // the winning side at +-inf: no 0 * inf
    ce = s.log1p_e + linear;
    slope = s.p * rest - s.q * t;
  }
};

}  // namespace focal_ext

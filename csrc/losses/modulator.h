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

// What multiplies in a derivative beside p^gamma: gamma, or 0 where the modulator has no gradient. Told at run time, so
// that both are one loop.
struct Slope : Parameter {
  Slope(Exponent gamma, bool live) : Parameter(live ? gamma.full : 0) {
    if (live) single = gamma.high;
  }
};

// A power of p, as a constant where it has no gradient, and a number that has none. Dual numbers (dual.h) tell them
// apart.
template <class T>
FOCAL_EXT_INLINE T power_or_constant(T power, const Slope&) {
  return power;
}
template <class T>
FOCAL_EXT_INLINE T without_gradient(T a) {
  return a;
}

// The same modulator where its slope is known to be 0 when a loop is compiled: two products less, the same bits.
template <class Modulator>
struct Constant : Modulator {
  explicit FOCAL_EXT_INLINE Constant(const Modulator& m) : Modulator(m) {}
};
template <class Modulator>
inline constexpr bool is_constant = false;
template <class Modulator>
inline constexpr bool is_constant<Constant<Modulator>> = true;

// c + slope a b, or c + slope b
template <class Math, class Modulator, class T, class... Factor>
FOCAL_EXT_INLINE T with_slope(const Modulator& modulator, T c, T b, Factor... a) {
  if constexpr (is_constant<Modulator>) return c;
  else return Math::fma((modulator.template slope<Math>() * ... * a), b, c);
}

template <class Math, class T>
FOCAL_EXT_INLINE T positive_part(T a) {
  if constexpr (requires { Math::positive_part(a); }) return Math::positive_part(a);
  else return Math::max(Math::constant(0), a);
}

// p^gamma. Whole gammas that detectors use are products; every other gamma is one exponential of a logarithm that is at
// hand.
template <int gamma_>
struct WholeModulator {
  static_assert(gamma_ == 0 || gamma_ == 1 || gamma_ == 2 || gamma_ == 4);
  static constexpr bool is_one = gamma_ == 0;  // p^0 = 1: plain cross entropy
  static constexpr Tail tail = gamma_ >= 1 ? Tail::vanishing : Tail::full;
  Slope slope_;
  explicit WholeModulator(Exponent gamma, bool live = true) : slope_(gamma, live) {}
  FOCAL_EXT_INLINE bool is_zero() const { return gamma_ == 0; }
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t slope() const {
    return Math::constant(slope_);
  }
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
    else if constexpr (gamma_ == 1) return power_or_constant(u, slope_);
    else if constexpr (gamma_ == 2) return power_or_constant(u * u, slope_);
    else return power_or_constant((u * u) * (u * u), slope_);
  }
};

// gamma 1.5, the matchability-aware loss's and YOLOv5's: a square root costs a third of an exponential.
struct ThreeHalvesModulator {
  static constexpr bool is_one = false;
  static constexpr Tail tail = Tail::vanishing;
  Slope slope_;
  explicit ThreeHalvesModulator(Exponent gamma, bool live = true) : slope_(gamma, live) {}
  FOCAL_EXT_INLINE bool is_zero() const { return false; }
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t slope() const {
    return Math::constant(slope_);
  }
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const {
    return Math::constant(1.5f);
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
    return power_or_constant(u * Math::sqrt(u), slope_);
  }
};

// gamma 0 or 1, told at run time: for kernels that each hold a hot loop, where a choice between two numbers costs less
// than another loop.
struct ZeroOrOneModulator {
  static constexpr bool is_one = false;
  static constexpr Tail tail = Tail::full;
  float exponent;
  Slope slope_;
  explicit ZeroOrOneModulator(Exponent gamma, bool live = true) : exponent(gamma.high), slope_(gamma, live) {}
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t slope() const {
    return Math::constant(slope_);
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
    return exponent == 0 ? Math::constant(1) : power_or_constant(u, slope_);
  }
};

struct AnyModulator {
  static constexpr bool is_one = false;
  static constexpr Tail tail = Tail::full;
  Exponent exponent;
  Slope slope_;
  float zero_to_gamma;  // float rounds gammas to 0 that are not; a loop over floats that compares a double is not simd
  explicit AnyModulator(Exponent gamma, bool live = true)
      : exponent(gamma), slope_(gamma, live), zero_to_gamma(gamma.full == 0 ? 1 : 0) {}
  FOCAL_EXT_INLINE bool is_zero() const { return zero_to_gamma != 0; }
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t slope() const {
    return Math::constant(slope_);
  }
  template <class Math>
  FOCAL_EXT_INLINE typename Math::value_t gamma() const {
    return Math::constant(exponent);
  }
  // p^gamma with p = sigmoid(z), log p = negative_part - log1p_e. A policy may have a more exact way for a large gamma.
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_probability(T z, T, T negative_part, T log1p_e) const {
    if constexpr (requires { Math::pow_sigmoid(exponent, z, negative_part); })
      if (Math::is_steep(exponent)) return power_or_constant(Math::pow_sigmoid(exponent, z, negative_part), slope_);
    return power_or_constant(Math::pow_exp(exponent, negative_part, log1p_e), slope_);
  }
  // u^gamma with u = p (1-t) + q t
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_soft(T x, T t, T u) const {
    if constexpr (requires { Math::pow_soft(exponent, x, t); })
      if (Math::is_steep(exponent)) return power_or_constant(Math::pow_soft(exponent, x, t), slope_);
    return of<Math>(u);
  }
  // u^gamma with log u = -minus_log, where u rounds to 1
  template <class Math, class T>
  FOCAL_EXT_INLINE T of_logarithm(T, T minus_log) const {
    return Math::pow_exp(exponent, Math::constant(0), minus_log);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE T of(T u) const {
    return power_or_constant(Math::pow(u, exponent), slope_);
  }
};

// What every term needs, from one exponential: e = exp(-|z|), r = 1 / (1 + e), w = e r, p = sigmoid(z), q =
// sigmoid(-z).
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
  FOCAL_EXT_INLINE T negative_part(T z) const {
    return Math::select_positive(z, Math::constant(0), Math::constant(0) - size);
  }
  // For what grows with |z| on the winning side. A power of 1e-16 is 1 to rounding, one of 1e20 is steep: their product
  // with it is finite.
  FOCAL_EXT_INLINE T whole_negative_part(T z) const {
    return Math::max(Math::constant(-1e18f), Math::min(Math::constant(0), z));
  }
  FOCAL_EXT_INLINE T q_everywhere(T) const { return q; }
};

// Binary cross entropy of a logit and a target t in [0, 1]: ce = log(1 + e) + (x > 0 ? x (1-t) : -x t), slope = p (1-t)
// - q t. `rest` is 1 - t, of which a smoothed t near 1 has lost the digits.
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

// -log(1 - share) for rest = 1 - share.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE T minus_log_of_rest(T share, T rest) {
  T ratio, inverse;
  Math::log_ratio(share, rest, ratio, inverse);
  return share > Math::constant(0) ? share * ratio : share;
}

// score^gamma, of which 0^0 is 1, 0^gamma 0 also where the power of what is nearly 0 is not, and NaN^0 NaN.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE T power_of_score(T score, const Modulator& modulator) {
  const T zero = Math::constant(0), power = modulator.template of<Math>(score);
  const T defined = modulator.is_zero() ? Math::constant(1) : score == zero ? zero : power;
  return score == score ? defined : score;
}
// Whether 1 minus a product of powers of p and a score is to be taken from its logarithm: it is near 1, and the
// logarithms are those of normal numbers.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE bool is_near_1(T product, T score) {
  return product > Math::constant(0.6f) && product <= Math::constant(1) && Math::constant(1.17549435e-38f) <= score &&
         score <= Math::constant(1);
}

// 1 - y / n (1 - y / (n + 1) (1 - ...)
template <class Math, int n, class T = typename Math::value_t>
FOCAL_EXT_INLINE T alternating_series(T y) {
  constexpr int last = sizeof(Math::limit()) == sizeof(float) ? 9 : 17;
  if constexpr (n > last) return Math::constant(1);
  else return Math::fma(y * Math::constant(-1. / n), alternating_series<Math, n + 1>(y), Math::constant(1));
}

// 1 - exp(-y) for 0 <= y <= 0.52, to the last bit of the type.
template <class Math, class T = typename Math::value_t>
FOCAL_EXT_INLINE T one_minus_exp(T y) {
  return y * alternating_series<Math, 2>(y);
}

}  // namespace focal_ext

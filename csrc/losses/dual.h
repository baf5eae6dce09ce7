// Owns: dual numbers over any policy: the derivative that follows from a value's own code. Proves the hand-written
// derivatives (tests/test_derivatives.py), and gives a loss that has none its kernels.
// Must not know: any loss.
#pragma once
#include "modulator.h"

namespace focal_ext {

// value + slope epsilon, epsilon^2 = 0.
template <class T>
struct Number {
  T value, slope;
  // What does not change does not, however large its factor is.
  static FOCAL_EXT_INLINE T times(T slope, T factor) { return slope == T(0) ? T(0) : slope * factor; }
  FOCAL_EXT_INLINE Number operator-() const { return {-value, -slope}; }
  friend FOCAL_EXT_INLINE Number operator+(Number a, Number b) { return {a.value + b.value, a.slope + b.slope}; }
  friend FOCAL_EXT_INLINE Number operator-(Number a, Number b) { return {a.value - b.value, a.slope - b.slope}; }
  friend FOCAL_EXT_INLINE Number operator*(Number a, Number b) {
    return {a.value * b.value, times(a.slope, b.value) + times(b.slope, a.value)};
  }
  friend FOCAL_EXT_INLINE Number operator/(Number a, Number b) {
    const T quotient = a.value / b.value;
    return {quotient, (a.slope - quotient * b.slope) / b.value};
  }
  friend FOCAL_EXT_INLINE bool operator==(Number a, Number b) { return a.value == b.value; }
  friend FOCAL_EXT_INLINE bool operator<(Number a, Number b) { return a.value < b.value; }
  friend FOCAL_EXT_INLINE bool operator>(Number a, Number b) { return a.value > b.value; }
  friend FOCAL_EXT_INLINE bool operator<=(Number a, Number b) { return a.value <= b.value; }
};

template <class T>
FOCAL_EXT_INLINE Number<T> power_or_constant(Number<T> power, const Slope& slope) {
  return slope.full == 0 ? Number<T>{power.value, T(0)} : power;
}
template <class T>
FOCAL_EXT_INLINE Number<T> without_gradient(Number<T> a) {
  return {a.value, T(0)};
}

template <class Math>
struct Dual {
  using T = typename Math::value_t;
  using value_t = Number<T>;
  static FOCAL_EXT_INLINE T limit() { return Math::limit(); }
  template <class C>
  static FOCAL_EXT_INLINE value_t constant(C c) {
    return {Math::constant(c), T(0)};
  }
  // At 0 on the side that select_positive takes, so that the halves of a formula fit together.
  static FOCAL_EXT_INLINE value_t abs(value_t a) { return a.value > T(0) ? a : -a; }
  static FOCAL_EXT_INLINE value_t min(value_t a, value_t b) { return a.value < b.value ? a : b; }
  static FOCAL_EXT_INLINE value_t max(value_t a, value_t b) { return a.value > b.value ? a : b; }
  static FOCAL_EXT_INLINE value_t select_positive(value_t z, value_t a, value_t b) { return z.value > T(0) ? a : b; }
  static FOCAL_EXT_INLINE value_t bounded(value_t a) {
    const T value = Math::bounded(a.value);
    return {value, value == a.value ? a.slope : T(0)};
  }
  static FOCAL_EXT_INLINE value_t fma(value_t a, value_t b, value_t c) {
    return {Math::fma(a.value, b.value, c.value),
        value_t::times(a.slope, b.value) + (value_t::times(b.slope, a.value) + c.slope)};
  }
  static FOCAL_EXT_INLINE value_t exp_neg(value_t y) {
    const T e = Math::exp_neg(y.value);
    return {e, -e * y.slope};
  }
  static FOCAL_EXT_INLINE void shares(value_t e, value_t& w, value_t& r) {
    Math::shares(e.value, w.value, r.value);
    w.slope = r.value * r.value * e.slope;
    r.slope = -w.slope;
  }
  static FOCAL_EXT_INLINE value_t log1p_exp(value_t e, value_t w) {
    return {Math::log1p_exp(e.value, w.value), e.slope / (T(1) + e.value)};
  }
  static FOCAL_EXT_INLINE value_t pow_exp(Exponent gamma, value_t a, value_t b) {
    const T power = Math::pow_exp(gamma, a.value, b.value);
    return {power, power * Math::constant(gamma) * (a.slope - b.slope)};
  }
  static FOCAL_EXT_INLINE value_t pow(value_t u, Exponent gamma) {
    const T power = Math::pow(u.value, gamma);
    return {power, u.value == T(0) ? T(0) : Math::constant(gamma) * power / u.value * u.slope};
  }
  static FOCAL_EXT_INLINE value_t sqrt(value_t u) {
    const T root = Math::sqrt(u.value);
    return {root, u.value == T(0) ? T(0) : u.slope / (root + root)};
  }
  static FOCAL_EXT_INLINE value_t product_or_zero(value_t a, value_t b) {
    return a.value == T(0) ? value_t{T(0), T(0)} : a * b;
  }
  static FOCAL_EXT_INLINE void log_ratio(value_t u, value_t rest, value_t& ratio, value_t& inverse) {
    Math::log_ratio(u.value, rest.value, ratio.value, inverse.value);
    ratio.slope = (inverse.value - ratio.value) / u.value * u.slope;
    inverse.slope = -inverse.value * inverse.value * rest.slope;
  }
};

// A loss from its value alone: Value has value<Math>(x, t) and a Factor.
template <class Value>
struct FromValue : Value {
  static constexpr bool mirrors = false, is_derived = true;
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const Number<T> loss = this->template value<Dual<Math>>(Number<T>{x, T(1)}, Number<T>{t, T(0)});
    return {loss.value, loss.slope};
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return dense<Math>(x, T(0));
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return dense<Math>(x, t);
  }
};

}  // namespace focal_ext

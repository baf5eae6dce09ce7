// Owns: the varifocal loss of one logit (Zhang et al. 2021, "VarifocalNet", eq. 2): positives weighed by their score, negatives focal.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// With the target t, ce the cross entropy and slope = p - t:
//   t > 0:  f = t ce,           f' = t slope
//   else:   f = p^gamma ce,     f' = p^gamma (gamma q ce + slope),   times alpha, which is the factor for a target of 0
template <class Modulator>
struct Varifocal {
  using Factor = ChosenFactor;
  static constexpr bool mirrors = false;
  Modulator modulator;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_hard<Math>(x, modulator);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return dense<Math>(x, t);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const Sigmoid<Math> s(x);
    const CrossEntropy<Math> bce(s, x, t, Math::constant(1) - t);
    const T power = modulator.template of_probability<Math>(x, s.p, s.negative_part(x), s.log1p_e);
    const T bounded = Math::min(bce.ce, Math::constant(2 * Math::limit()));  // q is 0 beyond
    const T focal = power * Math::fma(modulator.template gamma<Math>() * s.q, bounded, bce.slope);
    const bool scored = t > Math::constant(0);
    return {(scored ? t : power) * bce.ce, scored ? t * bce.slope : focal};
  }
};

}  // namespace focal_ext

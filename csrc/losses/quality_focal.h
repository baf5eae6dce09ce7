// Owns: the quality focal loss of one logit (Li et al. 2020, "Generalized Focal Loss", eq. 4): targets are scores in [0, 1].
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// With the target t and d = p - t = p (1-t) - q t, ce the cross entropy:
//   f = |d|^beta ce,   f' = |d|^(beta-1) sign(d) (d^2 + beta p q ce),   beta >= 1
// `lower` is the modulator of beta - 1. At t = 0 it is the focal loss with gamma = beta.
template <class Modulator, class Lower>
struct QualityFocal {
  using Factor = EqualFactor;
  static constexpr bool mirrors = false;
  Modulator modulator;
  Lower lower;

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
    const T d = bce.slope, size = Math::abs(d), zero = Math::constant(0);
    const T power = lower.template of<Math>(size);
    const T bounded = Math::min(bce.ce, Math::constant(2 * Math::limit()));  // p q is 0 beyond
    const T bend = power * Math::fma(d, d, modulator.template gamma<Math>() * (s.p * s.q) * bounded);
    const T ce = size == zero ? zero : bce.ce;
    const T infinity = Math::constant(__builtin_inff());
    // At +-inf the loss is infinite even where the power underflows.
    return {ce == infinity ? ce : power * size * ce, d < zero ? zero - bend : d == zero ? zero : bend};
  }
};

}  // namespace focal_ext

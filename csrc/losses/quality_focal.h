// Owns: the quality focal loss of one logit (Li et al. 2020, "Generalized Focal Loss", eq. 4): targets are scores in
// [0, 1].
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// With the target t and d = p - t = p (1-t) - q t, ce the cross entropy:
//   f = |d|^beta ce,   f' = |d|^(beta-1) sign(d) (d^2 + beta p q ce),   beta >= 1
// `lower` is the modulator of beta - 1. At t = 0 it is the focal loss with gamma = beta; with beta = 0 it is the cross
// entropy.
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
  FOCAL_EXT_INLINE SigmoidFocal<Modulator> negatives() const { return {modulator}; }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return dense<Math>(x, t);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const Sigmoid<Math> s(x);
    const CrossEntropy<Math> bce(s, x, t, Math::constant(1) - t);
    const T d = bce.slope, size = Math::abs(d), zero = Math::constant(0);
    const T power = power_or_constant(lower.template of<Math>(size), modulator.slope_);
    const T bounded = Math::min(bce.ce, Math::constant(2 * Math::limit()));  // p q is 0 beyond
    const T bend = power * Math::fma(d, d, modulator.template slope<Math>() * (s.p * s.q) * bounded);
    const T ce = size == zero ? zero : bce.ce;
    const T infinity = Math::constant(__builtin_inff());
    // At +-inf the loss is infinite even where the power underflows.
    return {ce == infinity ? ce : power * power_or_constant(size, modulator.slope_) * ce, d < zero    ? zero - bend
                                                                                          : d == zero ? zero
                                                                                                      : bend};
  }
};

template <bool fast, class F>
auto with_quality_focal(const double* numbers, F&& f) {
  const double cross_entropy[] = {0, 0, 1};
  if (numbers[0] == 0) return with_sigmoid_focal<fast>(cross_entropy, f);
  const Exponent beta(numbers[0]);
  const bool live = numbers[1] != 0;
  if constexpr (fast)
    if (numbers[0] == 2)
      return f(
          QualityFocal<WholeModulator<2>, WholeModulator<1>>{WholeModulator<2>(beta, live), WholeModulator<1>(beta)});
  return f(QualityFocal<AnyModulator, AnyModulator>{AnyModulator(beta, live), AnyModulator(Exponent(numbers[0] - 1))});
}

}  // namespace focal_ext

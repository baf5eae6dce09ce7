// Owns: the Gaussian focal loss of one logit (Law and Deng 2018, "CornerNet", eq. 1): peaks are positives, what is near
// one counts less.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// With f the focal loss of a logit that should be low:
//   t = 1:  f(-x),           -f'(-x)
//   else:   (1-t)^beta f(x), (1-t)^beta f'(x)
template <class Modulator, class Falloff>
struct GaussianFocal {
  using Factor = EqualFactor;
  static constexpr bool mirrors = false;
  Modulator modulator;
  Falloff falloff;  // of 1 - t

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
    const T zero = Math::constant(0), one = Math::constant(1), infinity = Math::constant(__builtin_inff());
    const bool peak = t == one;
    const ValueAndGradient<T> low = sigmoid_focal_hard<Math>(peak ? zero - x : x, modulator);
    const T weight = peak ? one : power_of_score<Math>(one - t, falloff);
    // At +inf the loss is infinite even where the power underflows.
    return {((low.value == infinity) & (weight == zero)) ? low.value : weight * low.value,
        peak ? zero - low.gradient : weight * low.gradient};
  }
};

template <bool fast, class F>
auto with_gaussian_focal(const double* numbers, F&& f) {
  const Exponent alpha(numbers[0]), beta(numbers[1]);
  if constexpr (fast)
    if (numbers[0] == 2 && numbers[1] == 4)
      return f(GaussianFocal<WholeModulator<2>, WholeModulator<4>>{WholeModulator<2>(alpha), WholeModulator<4>(beta)});
  return f(GaussianFocal<AnyModulator, AnyModulator>{AnyModulator(alpha), AnyModulator(beta)});
}

}  // namespace focal_ext

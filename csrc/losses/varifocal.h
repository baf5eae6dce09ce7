// Owns: the varifocal loss of one logit (Zhang et al. 2021, "VarifocalNet", eq. 2): positives weighed by their score,
// negatives focal.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "splitting.h"

namespace focal_ext {

// A positive is weighed by its target.
template <class Modulator>
struct Varifocal : Splitting<Varifocal<Modulator>> {
  Modulator modulator;
  explicit FOCAL_EXT_INLINE Varifocal(const Modulator& m) : modulator(m) {}

  template <class Math, class T>
  FOCAL_EXT_INLINE OwnTarget<T> own_target(const Sigmoid<Math>&, T, T score) const {
    return {score, Math::constant(1) - score, score};
  }
};

template <bool fast, class F>
auto with_varifocal(const double* numbers, F&& f) {
  const Exponent gamma(numbers[0]);
  const bool live = numbers[1] != 0;
  if constexpr (fast)
    if (numbers[0] == 2) return f(Varifocal(WholeModulator<2>(gamma, live)));
  return f(Varifocal(AnyModulator(gamma, live)));
}

}  // namespace focal_ext

// Owns: the matchability-aware loss of one logit (Huang et al. 2025, "DEIM", eq. 3): positives by cross entropy with a
// power of their score, negatives focal with a modulator that has no gradient.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "splitting.h"

namespace focal_ext {

// The target of a positive is q^gamma. Its rest is 1 - exp(gamma log q) where q^gamma is near 1.
template <class Modulator>
struct MatchabilityAware : Splitting<MatchabilityAware<Modulator>> {
  Modulator modulator;
  explicit FOCAL_EXT_INLINE MatchabilityAware(const Modulator& m) : modulator(m) {}

  template <class Math, class T>
  FOCAL_EXT_INLINE OwnTarget<T> own_target(const Sigmoid<Math>&, T, T score) const {
    const T one = Math::constant(1), target = power_of_score<Math>(score, modulator);
    const T exponent = modulator.template gamma<Math>() * minus_log_of_rest<Math>(one - score, score);
    return {target, is_near_1<Math>(target, score) ? one_minus_exp<Math>(exponent) : one - target, one};
  }
};

template <bool fast, class F>
auto with_matchability_aware(const double* numbers, F&& f) {
  const Exponent gamma(numbers[0]);
  if constexpr (fast)
    if (numbers[0] == 1.5) return f(MatchabilityAware(ThreeHalvesModulator(gamma, false)));
  return f(MatchabilityAware(AnyModulator(gamma, false)));
}

}  // namespace focal_ext

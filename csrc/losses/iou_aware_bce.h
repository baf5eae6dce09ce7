// Owns: the IoU-aware cross entropy of one logit (Cai et al. 2023, "Align-DETR", eq. 5, as LW-DETR has it): positives
// by cross entropy with a mean of their probability and their score, negatives focal.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "splitting.h"

namespace focal_ext {

// The target of a positive is t = max(p^alpha score^(1-alpha), 0.01), without a gradient. Its rest is 1 - exp(log t)
// where t is near 1.
template <class Modulator>
struct IouAwareBce : Splitting<IouAwareBce<Modulator>> {
  Modulator modulator;
  AnyModulator of_p, of_score;
  FOCAL_EXT_INLINE IouAwareBce(const Modulator& m, const AnyModulator& p, const AnyModulator& score)
      : modulator(m), of_p(p), of_score(score) {}

  template <class Math, class T>
  FOCAL_EXT_INLINE OwnTarget<T> own_target(const Sigmoid<Math>& s, T x, T score) const {
    const T one = Math::constant(1), least = Math::constant(0.01), log_p = s.whole_negative_part(x);
    const T mean = Math::pow_exp(of_p.exponent, log_p, s.log1p_e) * power_of_score<Math>(score, of_score);
    const T target = without_gradient(mean < least ? least : mean);
    const T of_scores = of_score.template gamma<Math>() * minus_log_of_rest<Math>(one - score, score);
    const T exponent = of_p.template gamma<Math>() * (s.log1p_e - log_p) + of_scores;
    return {target, without_gradient(is_near_1<Math>(mean, score) ? one_minus_exp<Math>(exponent) : one - target), one};
  }
};

template <bool fast, class F>
auto with_iou_aware_bce(const double* numbers, F&& f) {
  const Exponent gamma(numbers[1]);
  const AnyModulator of_p{Exponent(numbers[0])}, of_score{Exponent(1 - numbers[0])};
  if constexpr (fast)
    if (numbers[1] == 2) return f(IouAwareBce(WholeModulator<2>(gamma), of_p, of_score));
  return f(IouAwareBce(AnyModulator(gamma), of_p, of_score));
}

}  // namespace focal_ext

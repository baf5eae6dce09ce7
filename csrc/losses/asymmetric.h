// Owns: the asymmetric loss of one logit (Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", eq. 7).
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// f = t f+ + (1-t) f-:
//   f+ the focal loss of a positive with its own gamma,
//   f- = u^gamma (-log(1-u)) of the shifted probability u = max(p - clip, 0), with 1 - u = q + clip and R = -log(1-u) / u:
//        f-' = p q u^gamma (gamma R + 1 / (1-u)), 0 where p <= clip
// Without clip u is p, and f- the focal loss of a negative.
template <class Modulator, class Positive, bool clipped>
struct Asymmetric {
  using Factor = EqualFactor;
  static constexpr bool mirrors = false;
  Modulator modulator;  // of negatives
  Positive of_positive;
  Parameter clip;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    if constexpr (!clipped) return sigmoid_focal_hard<Math>(x, modulator);
    const Sigmoid<Math> s(x);
    const T shift = Math::constant(clip);
    const T u = Math::max(Math::constant(0), s.p - shift);  // NaN stays
    T ratio, inverse;
    Math::log_ratio(u, s.q + shift, ratio, inverse);
    const T power = modulator.template of<Math>(u);
    const T slope = (s.p * s.q) * power * Math::fma(modulator.template gamma<Math>(), ratio, inverse);
    return {Math::select_positive(u, power * (u * ratio), u), Math::select_positive(u, slope, u)};
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T) const {
    return mirrored(sigmoid_focal_hard<Math>(-x, of_positive));
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const ValueAndGradient<T> high = positive<Math>(x, t), low = negative<Math>(x);
    const T zero = Math::constant(0), not_t = Math::constant(1) - t;
    const bool all = not_t == zero, none = t == zero;  // no 0 * inf
    return {(none ? zero : t * high.value) + (all ? zero : not_t * low.value), (none ? zero : t * high.gradient) + (all ? zero : not_t * low.gradient)};
  }
};

}  // namespace focal_ext

// Owns: the asymmetric loss of one logit (Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", eq. 7).
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// The focal loss of a negative's shifted probability u = max(p - clip, 0), with 1 - u = q + clip and R = -log(1-u) / u:
//   f = u^gamma (-log(1-u)),   f' = p q u^gamma (gamma R + 1 / (1-u)), 0 where p <= clip
template <class Modulator>
struct ClippedFocal {
  static constexpr Tail tail = Modulator::tail == Tail::full ? Tail::full : Tail::falling;
  Modulator modulator;
  Parameter clip;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    const Sigmoid<Math> s(x);
    const T shift = Math::constant(clip), rest = s.q + shift;
    const T u = positive_part<Math>(s.p - shift);  // NaN stays
    T log, ratio, inverse;
    if constexpr (requires { Math::minus_log(u, rest); })
      log = Math::minus_log(u, rest), ratio = log / u, inverse = Math::constant(1) / rest;
    else Math::log_ratio(u, rest, ratio, inverse), log = u * ratio;
    const T power = modulator.template of<Math>(u);
    const T slope = (s.p * s.q) * power * with_slope<Math>(modulator, inverse, ratio);
    return {Math::select_positive(u, power * log, u), Math::select_positive(u, slope, u)};
  }
  FOCAL_EXT_INLINE ClippedFocal<Constant<Modulator>> as_constant() const { return {Constant(modulator), clip}; }
};

// f = t f+ + (1-t) f-: f+ the focal loss of a positive with its own gamma, f- that of a clipped negative.
template <class Modulator, class Positive, bool clipped>
struct Asymmetric {
  using Factor = EqualFactor;
  static constexpr bool mirrors = false;
  Modulator modulator;  // of negatives
  Positive of_positive;
  Parameter clip;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return negatives().template negative<Math>(x);
  }
  // Without clip u is p.
  FOCAL_EXT_INLINE auto negatives() const {
    if constexpr (clipped) return ClippedFocal<Modulator>{modulator, clip};
    else return SigmoidFocal<Modulator>{modulator};
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return dense<Math>(x, t);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const ValueAndGradient<T> high = mirrored(sigmoid_focal_hard<Math>(-x, of_positive)), low = negative<Math>(x);
    const T zero = Math::constant(0), not_t = Math::constant(1) - t;
    const bool all = not_t == zero, none = t == zero;  // no 0 * inf
    return {(none ? zero : t * high.value) + (all ? zero : not_t * low.value),
        (none ? zero : t * high.gradient) + (all ? zero : not_t * low.gradient)};
  }
};

// The numbers are gamma of negatives and of positives, the clip, and whether the modulators have a gradient.
template <bool fast, class F>
auto with_asymmetric(const double* numbers, F&& f) {
  const Exponent gamma(numbers[0]), gamma_positive(numbers[1]);
  const double clip = numbers[2];
  const bool live = numbers[3] != 0;
  const AnyModulator any(gamma, live), positive(gamma_positive, live);
  if constexpr (fast)
    if (numbers[0] == 4 && numbers[1] == 1 && clip != 0)
      return f(Asymmetric<WholeModulator<4>, WholeModulator<1>, true>{
          WholeModulator<4>(gamma, live), WholeModulator<1>(gamma_positive, live), clip});
  if (clip != 0) return f(Asymmetric<AnyModulator, AnyModulator, true>{any, positive, clip});
  return f(Asymmetric<AnyModulator, AnyModulator, false>{any, positive, 0});
}

}  // namespace focal_ext

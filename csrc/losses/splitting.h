// Owns: losses whose positives have a formula of their own, and whose negatives are the focal loss's: the class that a
// class id names, whatever its score, and dense targets above 0, are positives.
// Must not know: any one of them.
#pragma once
#include "sigmoid_focal.h"

namespace focal_ext {

// What a positive's cross entropy is taken with: its target, 1 - target, of which a target near 1 has lost the digits,
// and its weight.
template <class T>
struct OwnTarget {
  T target, rest, weight;
};

// With ce the cross entropy with the target t, slope = p - t:
//   positive:  f = weight ce,   f' = weight slope
//   else:      f = p^gamma ce,  f' = p^gamma (gamma q ce + slope),   times alpha, which is the factor for a target of 0
// Loss has the negatives' modulator and own_target<Math>(s, x, score).
template <class Loss>
struct Splitting {
  using Factor = ChosenFactor;
  static constexpr bool mirrors = false;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_hard<Math>(x, self().modulator);
  }
  FOCAL_EXT_INLINE auto negatives() const { return SigmoidFocal(self().modulator); }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T score) const {
    const Sigmoid<Math> s(x);
    const OwnTarget<T> own = self().template own_target<Math>(s, x, score);
    const CrossEntropy<Math> bce(s, x, own.target, own.rest);
    return {own.weight == Math::constant(0) && bce.ce == Math::constant(__builtin_inff()) ? own.weight
                                                                                          : own.weight * bce.ce,
        own.weight * bce.slope};
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    return either<Math>(x, t, t > Math::constant(0));
  }
  // The term of a positive if `scored`, else of a negative.
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> either(T x, T t, bool scored) const {
    const Sigmoid<Math> s(x);
    const OwnTarget<T> own = self().template own_target<Math>(s, x, t);
    const CrossEntropy<Math> bce(s, x, scored ? own.target : t, scored ? own.rest : Math::constant(1) - t);
    const auto& modulator = self().modulator;
    const T power = modulator.template of_probability<Math>(x, s.p, s.negative_part(x), s.log1p_e);
    const T bounded = Math::min(bce.ce, Math::constant(2 * Math::limit()));  // q is 0 beyond
    const T focal = power * Math::fma(modulator.template slope<Math>() * s.q, bounded, bce.slope);
    const T weight = scored ? own.weight : power;
    return {weight == Math::constant(0) && bce.ce == Math::constant(__builtin_inff()) ? weight : weight * bce.ce,
        scored ? own.weight * bce.slope : focal};
  }

 private:
  FOCAL_EXT_INLINE const Loss& self() const { return static_cast<const Loss&>(*this); }
};

}  // namespace focal_ext

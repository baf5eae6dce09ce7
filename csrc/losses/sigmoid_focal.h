// Owns: the sigmoid focal loss of one logit, value and derivative (Lin et al. 2017, eq. 5), for hard labels and soft
// targets.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "modulator.h"

namespace focal_ext {

// Focal loss of a logit z that should be low (z = x for a negative, -x for a positive).
//   f(z) = p^gamma softplus(z),   f'(z) = p^gamma (gamma q softplus(z) + p),   softplus(z) = max(z, 0) + log(1 + e)
// Where the modulator p^gamma has no gradient, here and in all other losses, its slope is 0 instead of gamma: f'(z) =
// p^(gamma+1). A negative contributes (1-alpha) f(x) and (1-alpha) f'(x), a positive alpha f(-x) and -alpha f'(-x).
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE ValueAndGradient<T> sigmoid_focal_hard(T z, const Modulator& modulator) {
  const Sigmoid<Math> s(z);
  const T softplus = s.softplus(z);
  if constexpr (Modulator::is_one) return {softplus, s.p};
  const T power = modulator.template of_probability<Math>(z, s.p, s.negative_part(z), s.log1p_e);
  // q is 0 beyond the limit: the clamp only keeps 0 * inf from an infinite logit's gradient.
  const T bounded = Math::bounded(softplus);
  return {power * softplus, power * with_slope<Math>(modulator, s.p, bounded, s.q)};
}

// Soft target t (torchvision's definition): u = p (1-t) + q t = 1 - p_t, ce the cross entropy with the target
// `smoothed` and its `rest`, without label smoothing t and 1 - t themselves,
//   loss = u^gamma ce,   d/dx = u^gamma (gamma (1-2t) h ce + slope),   h = p q / u
// without alpha_t = alpha t + (1-alpha) (1-t), which is the caller's coefficient.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE ValueAndGradient<T> sigmoid_focal_soft(T x, T t, T smoothed, T rest, const Modulator& modulator) {
  const Sigmoid<Math> s(x);
  const T zero = Math::constant(0), one = Math::constant(1);
  const T not_t = one - t;
  const CrossEntropy<Math> bce(s, x, smoothed, rest);
  const T ce = bce.ce, slope = bce.slope, linear = bce.linear;
  if constexpr (Modulator::is_one) return {ce, slope};
  const T u = Math::fma(s.p, not_t, s.q * t);
  // Asked of 1 - t, not of t: gcc 12 would join the question with a caller's, and leave the loop scalar.
  const bool is_one = not_t == zero, is_hard = is_one | (t == zero);
  const T h = is_one ? s.p : t == zero ? s.q : s.p * s.q / u;  // the limits where u underflows
  // At a hard target log u is at hand, where u itself may round to 1.
  const T z = is_one ? zero - x : x;
  const T power = is_hard ? modulator.template of_probability<Math>(z, u, s.negative_part(z), s.log1p_e)
                          : modulator.template of_soft<Math>(x, t, u);
  const T bounded = Math::min(ce, Math::constant(2 * Math::limit()));  // ce may be negative: t is unchecked
  const T infinity = Math::constant(__builtin_inff());
  // At +-inf the loss is infinite even where u^gamma underflows.
  return {linear == infinity ? linear : power * ce,
      power * Math::fma(modulator.template slope<Math>() * (not_t - t) * h, bounded, slope)};
}

// Label smoothing (apex, effdet): the cross entropy's target becomes t (1-s) + s/2, the modulator keeps the hard label.
// The hard formula with the target `half` = s/2 in z's frame; half of a smoothed label's cross entropy grows with |z|
// on the winning side too.
template <class Math, class Modulator, class T = typename Math::value_t>
FOCAL_EXT_INLINE ValueAndGradient<T> sigmoid_focal_smoothed(T z, T half, const Modulator& modulator) {
  const Sigmoid<Math> s(z);
  const CrossEntropy<Math> bce(s, z, half, Math::constant(1) - half);
  if constexpr (Modulator::is_one) return {bce.ce, bce.slope};
  const T power = modulator.template of_probability<Math>(z, s.p, s.whole_negative_part(z), s.log1p_e);
  const T weighed = power * Math::bounded(bce.ce);  // finite at infinite logits
  return {Math::product_or_zero(power, bce.ce),
      Math::fma(modulator.template slope<Math>() * s.q_everywhere(z), weighed, power * bce.slope)};
}

// A positive is a negative seen in the mirror.
template <class T>
FOCAL_EXT_INLINE ValueAndGradient<T> mirrored(ValueAndGradient<T> term) {
  return {term.value, -term.gradient};
}

// The term of the class that a class id names.
template <class Math, class T>
FOCAL_EXT_INLINE ValueAndGradient<T> hard_or_scored(T score, ValueAndGradient<T> hard, ValueAndGradient<T> scored) {
  const bool is_hard = score == Math::constant(1);
  return {is_hard ? hard.value : scored.value, is_hard ? hard.gradient : scored.gradient};
}

// A loss, as the kernels take it: negative(x) for a target of 0, which nearly every logit of a detector has;
// positive(x, t) for the class that a class id names, with the target t = 1 or the score given for it; dense(x, t) for
// any target; and Factor, what multiplies them. It mirrors if positive(x, 1) is negative(-x) in the mirror.
template <class Modulator>
struct SigmoidFocal {
  using Factor = MixedFactor;
  static constexpr bool mirrors = true;
  static constexpr Tail tail = Modulator::tail;
  Modulator modulator;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_hard<Math>(x, modulator);
  }
  FOCAL_EXT_INLINE SigmoidFocal<Constant<Modulator>> as_constant() const { return {Constant(modulator)}; }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return hard_or_scored<Math>(t, mirrored(sigmoid_focal_hard<Math>(-x, modulator)), dense<Math>(x, t));
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    return sigmoid_focal_soft<Math>(x, t, t, Math::constant(1) - t, modulator);
  }
};

template <class Modulator>
struct SmoothedSigmoidFocal {
  using Factor = MixedFactor;
  static constexpr bool mirrors = true;
  Modulator modulator;
  Parameter half, kept;  // s/2, 1-s
  SmoothedSigmoidFocal(const Modulator& m, double smoothing) : modulator(m), half(smoothing / 2), kept(1 - smoothing) {}

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_smoothed<Math>(x, Math::constant(half), modulator);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return dense<Math>(x, t);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    const T zero = Math::constant(0), one = Math::constant(1);
    const ValueAndGradient<T> low = negative<Math>(t == one ? zero - x : x), high = mirrored(low);
    const T keep = Math::constant(kept), add = Math::constant(half);
    const ValueAndGradient<T> soft =
        sigmoid_focal_soft<Math>(x, t, Math::fma(t, keep, add), Math::fma(one - t, keep, add), modulator);
    const bool hard = (t == zero) | (t == one);
    return {hard ? low.value : soft.value, t == zero ? low.gradient : t == one ? high.gradient : soft.gradient};
  }
};

// Calls f(loss) with the instance for a call's numbers: gamma, label smoothing, whether the modulator has a gradient.
// `fast`: with the cheapest modulators for the gammas that detectors use.
template <bool fast, class F>
auto with_sigmoid_focal(const double* numbers, F&& f) {
  const double gamma = numbers[0], smoothing = numbers[1];
  const Exponent exponent(gamma);
  const bool live = numbers[2] != 0;
  if (smoothing != 0) {
    if constexpr (fast)
      if (gamma == 2) return f(SmoothedSigmoidFocal<WholeModulator<2>>{WholeModulator<2>(exponent, live), smoothing});
    if (gamma == 0) return f(SmoothedSigmoidFocal<WholeModulator<0>>{WholeModulator<0>(exponent), smoothing});
    return f(SmoothedSigmoidFocal<AnyModulator>{AnyModulator(exponent, live), smoothing});
  }
  if constexpr (fast) {
    if (gamma == 0) return f(SigmoidFocal<WholeModulator<0>>{WholeModulator<0>(exponent)});
    if (gamma == 1) return f(SigmoidFocal<WholeModulator<1>>{WholeModulator<1>(exponent, live)});
    if (gamma == 1.5) return f(SigmoidFocal<ThreeHalvesModulator>{ThreeHalvesModulator(exponent, live)});
    if (gamma == 2) return f(SigmoidFocal<WholeModulator<2>>{WholeModulator<2>(exponent, live)});
  }
  return f(SigmoidFocal<AnyModulator>{AnyModulator(exponent, live)});
}

}  // namespace focal_ext

// Owns: the losses whose negatives are the focal loss's, as one that is told at run time which it is: only rare
// elements ask. And which instance of a loss serves a call in kernels that each hold a hot loop.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "list.h"

namespace focal_ext {

// `second` is the modulator of beta - 1 of the quality focal loss, and of the asymmetric loss's positives; `others` are
// the exponents of the Gaussian focal loss's 1 - t, and of the IoU-aware loss's p and score. The sigmoid focal loss is
// here for pairs of class ids and scores, for levels, and for double.
template <class Modulator, class Second>
struct FocalNegatives {
  static constexpr bool mirrors = false;
  Loss loss;
  Modulator modulator;
  Second second;
  AnyModulator others[2];

  // Losses without alpha have two equal factors.
  template <class T>
  FOCAL_EXT_INLINE T factor(T t, bool named, T of_one, T of_zero) const {
    if (loss == Loss::sigmoid_focal) return MixedFactor::of(t, of_one, of_zero);
    return named ? of_one : ChosenFactor::of(t, of_one, of_zero);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_hard<Math>(x, modulator);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    return choose<Math>(x, t, true);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    return choose<Math>(x, t, false);
  }

 private:
  // Those whose positives have a formula of their own.
  struct Split : Splitting<Split> {
    Loss loss;
    const Modulator& modulator;
    const AnyModulator* others;
    FOCAL_EXT_INLINE Split(Loss l, const Modulator& m, const AnyModulator* o) : loss(l), modulator(m), others(o) {}

    template <class Math, class T>
    FOCAL_EXT_INLINE OwnTarget<T> own_target(const Sigmoid<Math>& s, T x, T score) const {
      if (loss == Loss::varifocal) return Varifocal<Modulator>(modulator).template own_target<Math>(s, x, score);
      if (loss == Loss::matchability_aware)
        return MatchabilityAware<Modulator>(modulator).template own_target<Math>(s, x, score);
      return IouAwareBce<Modulator>(modulator, others[0], others[1]).template own_target<Math>(s, x, score);
    }
  };

  // A function of its own: inline, it would be in a kernel three times, and the library is at its limit.
  template <class Math, class T>
  FOCAL_EXT_NO_INLINE ValueAndGradient<T> choose(T x, T t, bool named) const {
    switch (loss) {
      case Loss::quality_focal: return QualityFocal<Modulator, Second>{modulator, second}.template dense<Math>(x, t);
      case Loss::varifocal:
      case Loss::matchability_aware:
      case Loss::iou_aware_bce:
        return Split(loss, modulator, others).template either<Math>(x, t, named || t > Math::constant(0));
      case Loss::gaussian_focal:
        return GaussianFocal<Modulator, AnyModulator>{modulator, others[0]}.template dense<Math>(x, t);
      case Loss::sigmoid_focal: return SigmoidFocal<Modulator>{modulator}.template dense<Math>(x, t);
      default: return Asymmetric<Modulator, Second, false>{modulator, second, 0}.template dense<Math>(x, t);
    }
  }
};

constexpr bool has_focal_negatives(const LossParameters& p) { return facts_of(p.loss).exponent >= 0; }
constexpr double exponent_of_negatives(const LossParameters& p) { return p.numbers[facts_of(p.loss).exponent]; }

// A loss with negatives of another form: no kernel has a hot loop for it.
template <class Loss>
struct ElementByElement : Loss {};
template <class Loss>
constexpr bool has_hot_loop = true;
template <class Loss>
constexpr bool has_hot_loop<ElementByElement<Loss>> = false;

template <class F>
auto with_smoothed_sigmoid_focal(const LossParameters& p, F&& f) {
  return f(SmoothedSigmoidFocal<AnyModulator>{AnyModulator(Exponent(p.numbers[0]), p.numbers[2] != 0), p.numbers[1]});
}

// What FocalNegatives needs to know of a loss beside the exponent of its negatives: the order is that of its members.
struct NegativesOf {
  bool live;
  double second, others[2];
};
constexpr NegativesOf negatives_of(const LossParameters& p) {
  const double* const n = p.numbers;
  switch (p.loss) {
    case Loss::quality_focal: return {n[1] != 0, n[0] - 1, {}};
    case Loss::varifocal: return {n[1] != 0, 0, {}};
    case Loss::asymmetric: return {n[3] != 0, n[1], {}};
    case Loss::matchability_aware: return {false, 0, {}};
    case Loss::iou_aware_bce: return {true, 0, {n[0], 1 - n[0]}};
    case Loss::gaussian_focal: return {true, 0, {n[1], 0}};
    default: return {n[2] != 0, 0, {}};
  }
}

// The losses whose negatives are the focal loss's, by any exponent or by that of their papers.
template <bool fast, class F>
auto with_focal_negatives(const LossParameters& p, F&& f) {
  const double exponent = exponent_of_negatives(p);
  const Exponent gamma(exponent);
  const NegativesOf of = negatives_of(p);
  const AnyModulator others[2] = {AnyModulator(Exponent(of.others[0])), AnyModulator(Exponent(of.others[1]))};
  if constexpr (fast)
    if (exponent == 2 && p.loss != Loss::asymmetric)
      return f(FocalNegatives<WholeModulator<2>, WholeModulator<1>>{
          p.loss, WholeModulator<2>(gamma, of.live), WholeModulator<1>(Exponent(1)), {others[0], others[1]}});
  return f(FocalNegatives<AnyModulator, AnyModulator>{
      p.loss, AnyModulator(gamma, of.live), AnyModulator(Exponent(of.second), of.live), {others[0], others[1]}});
}

// The quality focal loss with beta 0 is cross entropy.
constexpr LossParameters simplest(const LossParameters& p) {
  return p.loss == Loss::quality_focal && p.numbers[0] == 0 ? LossParameters{Loss::sigmoid_focal, {0, 0, 1}} : p;
}

// As with_loss_by_negatives below, for kernels over levels: the fewest instances, and none of the asymmetric loss.
template <bool fast, class F>
auto with_loss_over_levels(const LossParameters& given, F&& f) {
  const LossParameters p = simplest(given);
  if (p.loss == Loss::sigmoid_focal && p.numbers[1] != 0) return with_smoothed_sigmoid_focal(p, f);
  return with_focal_negatives<fast>(p, f);
}

// As with_loss with fewer instances, for kernels that each hold a hot loop: those that share their negatives are one.
// `scored`: class ids come in pairs with scores.
template <bool fast, class F>
auto with_loss_by_negatives(const LossParameters& given, bool scored, F&& f) {
#define FOCAL_EXT_CASE(name, numbers_of_its_own, exponent)                                          \
  if constexpr (exponent < 0)                                                                       \
    if (given.loss == Loss::name)                                                                   \
      return with_##name<false>(                                                                    \
          given.numbers, [&]<class Own>(const Own& own) { return f(ElementByElement<Own>{own}); });
  FOCAL_EXT_LOSSES(FOCAL_EXT_CASE, FOCAL_EXT_SKIP)
#undef FOCAL_EXT_CASE
  const LossParameters p = simplest(given);
  const double exponent = exponent_of_negatives(p);
  const Exponent gamma(exponent);
  const NegativesOf of = negatives_of(p);
  const AnyModulator any(gamma, of.live), second(Exponent(of.second), of.live);
  if (p.loss == Loss::sigmoid_focal) {
    if (p.numbers[1] != 0) return with_smoothed_sigmoid_focal(p, f);
    if constexpr (fast) {
      if (exponent == 0 || exponent == 1)
        return f(SigmoidFocal<ZeroOrOneModulator>{ZeroOrOneModulator(gamma, of.live)});
      if (exponent == 2 && !scored) return f(SigmoidFocal<WholeModulator<2>>{WholeModulator<2>(gamma, of.live)});
      if (!scored) return f(SigmoidFocal<AnyModulator>{any});
    }
  }
  if (p.loss == Loss::asymmetric && p.numbers[2] != 0) {
    if constexpr (fast)
      if (exponent == 4)
        return f(
            Asymmetric<WholeModulator<4>, AnyModulator, true>{WholeModulator<4>(gamma, of.live), second, p.numbers[2]});
    return f(Asymmetric<AnyModulator, AnyModulator, true>{any, second, p.numbers[2]});
  }
  return with_focal_negatives<fast>(p, f);
}

}  // namespace focal_ext

// Owns: the losses whose negatives are the focal loss's, as one that is told at run time which it is: only rare
// elements ask.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "asymmetric.h"
#include "gaussian_focal.h"
#include "iou_aware_bce.h"
#include "matchability_aware.h"
#include "parameters.h"
#include "quality_focal.h"
#include "varifocal.h"

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

  // Of the losses without alpha both factors are equal.
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

}  // namespace focal_ext

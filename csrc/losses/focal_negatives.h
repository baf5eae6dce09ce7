// Owns: the losses whose negatives are the focal loss's, as one that is told at run time which it is: only rare elements ask.
// Must not know: how logits are stored, who weighs them, how they are summed.
#pragma once
#include "asymmetric.h"
#include "parameters.h"
#include "quality_focal.h"
#include "varifocal.h"

namespace focal_ext {

// `second` is the modulator of beta - 1 of the quality focal loss, and of the asymmetric loss's positives.
template <class Modulator, class Second>
struct FocalNegatives {
  // The others have no alpha: their factors are equal.
  using Factor = ChosenFactor;
  static constexpr bool mirrors = false;
  Loss loss;
  Modulator modulator;
  Second second;

  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> negative(T x) const {
    return sigmoid_focal_hard<Math>(x, modulator);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> positive(T x, T t) const {
    if (loss == Loss::quality_focal) return quality().template positive<Math>(x, t);
    return loss == Loss::varifocal ? varifocal().template positive<Math>(x, t) : asymmetric().template positive<Math>(x, t);
  }
  template <class Math, class T>
  FOCAL_EXT_INLINE ValueAndGradient<T> dense(T x, T t) const {
    if (loss == Loss::quality_focal) return quality().template dense<Math>(x, t);
    return loss == Loss::varifocal ? varifocal().template dense<Math>(x, t) : asymmetric().template dense<Math>(x, t);
  }

 private:
  FOCAL_EXT_INLINE auto quality() const { return QualityFocal<Modulator, Second>{modulator, second}; }
  FOCAL_EXT_INLINE auto varifocal() const { return Varifocal<Modulator>{modulator}; }
  FOCAL_EXT_INLINE auto asymmetric() const { return Asymmetric<Modulator, Second, false>{modulator, second, 0}; }
};

}  // namespace focal_ext

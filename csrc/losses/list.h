// Owns: the list of losses, and which instance of a loss serves which parameters.
// Must not know: formulas, kernels.
#pragma once
#include "focal_negatives.h"

namespace focal_ext {

template <bool fast, class F>
auto with_sigmoid_focal(double gamma, F&& f) {
  const Exponent exponent(gamma);
  if constexpr (fast) {
    if (gamma == 0) return f(SigmoidFocal<WholeModulator<0>>{WholeModulator<0>(exponent)});
    if (gamma == 1) return f(SigmoidFocal<WholeModulator<1>>{WholeModulator<1>(exponent)});
    if (gamma == 2) return f(SigmoidFocal<WholeModulator<2>>{WholeModulator<2>(exponent)});
  }
  return f(SigmoidFocal<AnyModulator>{AnyModulator(exponent)});
}

// Calls f(loss) with the instance for these parameters. `fast`: with the cheapest modulators for the gammas that detectors use.
template <bool fast, class F>
auto with_loss(const LossParameters& p, F&& f) {
  const Exponent gamma(p.gamma);
  const AnyModulator any(gamma);
  const WholeModulator<2> square(gamma);
  switch (p.loss) {
    case Loss::quality_focal: {
      if constexpr (fast)
        if (p.gamma == 2) return f(QualityFocal<WholeModulator<2>, WholeModulator<1>>{square, WholeModulator<1>(gamma)});
      return f(QualityFocal<AnyModulator, AnyModulator>{any, AnyModulator(Exponent(p.gamma - 1))});
    }
    case Loss::varifocal:
      if constexpr (fast)
        if (p.gamma == 2) return f(Varifocal<WholeModulator<2>>{square});
      return f(Varifocal<AnyModulator>{any});
    case Loss::asymmetric: {
      using Defaults = Asymmetric<WholeModulator<4>, WholeModulator<1>, true>;
      const AnyModulator positive(Exponent(p.gamma_positive));
      if constexpr (fast)
        if (p.gamma == 4 && p.gamma_positive == 1 && p.clip != 0) return f(Defaults{WholeModulator<4>(gamma), WholeModulator<1>(gamma), p.clip});
      if (p.clip != 0) return f(Asymmetric<AnyModulator, AnyModulator, true>{any, positive, p.clip});
      return f(Asymmetric<AnyModulator, AnyModulator, false>{any, positive, 0});
    }
    default:
      if (p.smoothing == 0) return with_sigmoid_focal<fast>(p.gamma, f);
      if constexpr (fast)
        if (p.gamma == 2) return f(SmoothedSigmoidFocal<WholeModulator<2>>{square, p.smoothing});
      if (p.gamma == 0) return f(SmoothedSigmoidFocal<WholeModulator<0>>{WholeModulator<0>(gamma), p.smoothing});
      return f(SmoothedSigmoidFocal<AnyModulator>{any, p.smoothing});
  }
}

// The sigmoid focal loss alone, by fewer instances.
template <bool fast, class F>
auto with_few_sigmoid_focals(const LossParameters& p, F&& f) {
  const Exponent gamma(p.gamma);
  if (p.smoothing != 0) return f(SmoothedSigmoidFocal<AnyModulator>{AnyModulator(gamma), p.smoothing});
  if constexpr (fast)
    if (p.gamma == 2) return f(SigmoidFocal<WholeModulator<2>>{WholeModulator<2>(gamma)});
  return f(SigmoidFocal<AnyModulator>{AnyModulator(gamma)});
}

// As with_loss with fewer instances, for kernels that each hold a hot loop: those that share their negatives are one.
template <bool fast, class F>
auto with_loss_by_negatives(const LossParameters& p, F&& f) {
  const Exponent gamma(p.gamma);
  const AnyModulator any(gamma), second(Exponent(p.loss == Loss::quality_focal ? p.gamma - 1 : p.gamma_positive));
  if (p.loss == Loss::sigmoid_focal) {
    if constexpr (fast)
      if (p.smoothing == 0 && (p.gamma == 0 || p.gamma == 1)) return f(SigmoidFocal<ZeroOrOneModulator>{ZeroOrOneModulator(gamma)});
    return with_few_sigmoid_focals<fast>(p, f);
  }
  if (p.loss == Loss::asymmetric && p.clip != 0) {
    if constexpr (fast)
      if (p.gamma == 4) return f(Asymmetric<WholeModulator<4>, AnyModulator, true>{WholeModulator<4>(gamma), second, p.clip});
    return f(Asymmetric<AnyModulator, AnyModulator, true>{any, second, p.clip});
  }
  if constexpr (fast)
    if (p.gamma == 2 && p.loss != Loss::asymmetric)
      return f(FocalNegatives<WholeModulator<2>, WholeModulator<1>>{p.loss, WholeModulator<2>(gamma), WholeModulator<1>(gamma)});
  return f(FocalNegatives<AnyModulator, AnyModulator>{p.loss, any, second});
}

}  // namespace focal_ext

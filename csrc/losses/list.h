// Owns: the list of losses, and which instance of a loss serves a call in kernels that each hold a hot loop.
// Must not know: formulas, kernels.
#pragma once
#include "focal_negatives.h"

namespace focal_ext {

// Calls f(loss) with the instance for these parameters, by with_<name> beside each formula. `fast`: with the cheapest
// modulators for the exponents that detectors use.
template <bool fast, class F>
auto with_loss(const LossParameters& p, F&& f) {
  switch (p.loss) {
#define FOCAL_EXT_CASE(name, ...)                          \
  case Loss::name: return with_##name<fast>(p.numbers, f);
    FOCAL_EXT_LOSSES_OF_ONE_LOGIT(FOCAL_EXT_CASE)
#undef FOCAL_EXT_CASE
    default: __builtin_unreachable();
  }
}

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

// Of the losses whose negatives are the focal loss's, by any exponent or by that of their papers.
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

// As with_loss_by_negatives, for kernels over levels: the fewest instances, and none of the asymmetric loss.
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

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

// The sigmoid focal loss alone, by fewer instances.
template <bool fast, class F>
auto with_few_sigmoid_focals(const LossParameters& p, F&& f) {
  const double* const numbers = p.numbers;
  const Exponent gamma(numbers[0]);
  const bool live = numbers[2] != 0;
  if (numbers[1] != 0) return f(SmoothedSigmoidFocal<AnyModulator>{AnyModulator(gamma, live), numbers[1]});
  if constexpr (fast)
    if (numbers[0] == 2) return f(SigmoidFocal<WholeModulator<2>>{WholeModulator<2>(gamma, live)});
  return f(SigmoidFocal<AnyModulator>{AnyModulator(gamma, live)});
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

// As with_loss with fewer instances, for kernels that each hold a hot loop: those that share their negatives are one.
// `scored`: class ids come in pairs with scores.
template <bool fast, class F>
auto with_loss_by_negatives(const LossParameters& given, bool scored, F&& f) {
  const bool is_cross_entropy = given.loss == Loss::quality_focal && given.numbers[0] == 0;
  const LossParameters p = is_cross_entropy ? LossParameters{Loss::sigmoid_focal, {0, 0, 1}} : given;
  const double exponent = exponent_of_negatives(p);
  const Exponent gamma(exponent);
  const NegativesOf of = negatives_of(p);
  const AnyModulator any(gamma, of.live), second(Exponent(of.second), of.live);
  if (p.loss == Loss::sigmoid_focal) {
    const bool smoothed = p.numbers[1] != 0;
    if constexpr (fast)
      if (!smoothed && (exponent == 0 || exponent == 1))
        return f(SigmoidFocal<ZeroOrOneModulator>{ZeroOrOneModulator(gamma, of.live)});
    if (smoothed || !scored) return with_few_sigmoid_focals<fast>(p, f);
  }
  if (p.loss == Loss::asymmetric && p.numbers[2] != 0) {
    if constexpr (fast)
      if (exponent == 4)
        return f(
            Asymmetric<WholeModulator<4>, AnyModulator, true>{WholeModulator<4>(gamma, of.live), second, p.numbers[2]});
    return f(Asymmetric<AnyModulator, AnyModulator, true>{any, second, p.numbers[2]});
  }
  const AnyModulator others[2] = {AnyModulator(Exponent(of.others[0])), AnyModulator(Exponent(of.others[1]))};
  if constexpr (fast)
    if (exponent == 2 && p.loss != Loss::asymmetric)
      return f(FocalNegatives<WholeModulator<2>, WholeModulator<1>>{
          p.loss, WholeModulator<2>(gamma, of.live), WholeModulator<1>(Exponent(1)), {others[0], others[1]}});
  return f(FocalNegatives<AnyModulator, AnyModulator>{p.loss, any, second, {others[0], others[1]}});
}

}  // namespace focal_ext

// Owns: the list of losses: the header of each, its name, how many numbers a call has.
// Must not know: what a formula says, kernels.
#pragma once
#include "asymmetric.h"
#include "gaussian_focal.h"
#include "iou_aware_bce.h"
#include "matchability_aware.h"
#include "parameters.h"
#include "quality_focal.h"
#include "sigmoid_focal.h"
#include "softmax_focal.h"
#include "varifocal.h"

namespace focal_ext {

// By number, as in focal_ext/losses: a new one is the last. Each with how many numbers of its own a call has, in the
// order of its Python function, and which of them is the exponent of p in the loss of a negative, -1 where that is not
// p^exponent times its cross entropy. ROW: the loss is one number a row.
#define FOCAL_EXT_LOSSES(ONE_LOGIT, ROW) \
  ONE_LOGIT(sigmoid_focal, 3, 0)         \
  ONE_LOGIT(quality_focal, 2, 0)         \
  ONE_LOGIT(varifocal, 2, 0)             \
  ONE_LOGIT(asymmetric, 4, 0)            \
  ROW(softmax_focal, 2, 0)               \
  ONE_LOGIT(matchability_aware, 1, 0)    \
  ONE_LOGIT(iou_aware_bce, 2, 1)         \
  ONE_LOGIT(gaussian_focal, 2, 0)
#define FOCAL_EXT_SKIP(...)

#define FOCAL_EXT_NAME(name, ...) name,
enum class Loss : int { FOCAL_EXT_LOSSES(FOCAL_EXT_NAME, FOCAL_EXT_NAME) };
#undef FOCAL_EXT_NAME

struct LossFacts {
  int numbers, exponent;
  bool is_per_row;
};
#define FOCAL_EXT_OF_ONE_LOGIT(name, numbers, exponent) {numbers, exponent, false},
#define FOCAL_EXT_OF_A_ROW(name, numbers, exponent) {numbers, exponent, true},
constexpr LossFacts kFactsOfLosses[] = {FOCAL_EXT_LOSSES(FOCAL_EXT_OF_ONE_LOGIT, FOCAL_EXT_OF_A_ROW)};
#undef FOCAL_EXT_OF_ONE_LOGIT
#undef FOCAL_EXT_OF_A_ROW
constexpr int kLosses = int(sizeof(kFactsOfLosses) / sizeof(LossFacts));

constexpr LossFacts facts_of(Loss loss) { return kFactsOfLosses[int(loss)]; }

constexpr LossParameters parameters_of(Loss loss, const double* numbers) {
  LossParameters p = {loss, {}, facts_of(loss).is_per_row};
  for (int i = 0; i < facts_of(loss).numbers; ++i) p.numbers[i] = numbers[i];
  return p;
}

// Calls f(loss) with the instance for these parameters, by with_<name> beside each formula. `fast`: with the cheapest
// modulators for the exponents that detectors use.
template <bool fast, class F>
auto with_loss(const LossParameters& p, F&& f) {
  switch (p.loss) {
#define FOCAL_EXT_CASE(name, ...)                          \
  case Loss::name: return with_##name<fast>(p.numbers, f);
    FOCAL_EXT_LOSSES(FOCAL_EXT_CASE, FOCAL_EXT_SKIP)
#undef FOCAL_EXT_CASE
    default: __builtin_unreachable();
  }
}

}  // namespace focal_ext

// Owns: the names of the losses and the numbers that a call may choose.
// Must not know: formulas.
#pragma once

namespace focal_ext {

// By number, as in focal_ext/losses: a new one is the last. Each with how many numbers of its own a call has, in the
// order of its Python function, and which of them is the exponent of p in the loss of a negative. ROW: the loss is one
// number a row.
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
#define FOCAL_EXT_LOSSES_OF_ONE_LOGIT(LOSS) FOCAL_EXT_LOSSES(LOSS, FOCAL_EXT_SKIP)

#define FOCAL_EXT_NAME(name, ...) name,
enum class Loss : int { FOCAL_EXT_LOSSES(FOCAL_EXT_NAME, FOCAL_EXT_NAME) };
#undef FOCAL_EXT_NAME

struct LossParameters {
  Loss loss;
  double numbers[4];
};

struct LossFacts {
  int numbers, exponent;
};
#define FOCAL_EXT_FACTS(name, numbers, exponent) {numbers, exponent},
constexpr LossFacts kFactsOfLosses[] = {FOCAL_EXT_LOSSES(FOCAL_EXT_FACTS, FOCAL_EXT_FACTS)};
#undef FOCAL_EXT_FACTS
constexpr int kLosses = int(sizeof(kFactsOfLosses) / sizeof(LossFacts));

constexpr LossFacts facts_of(Loss loss) { return kFactsOfLosses[int(loss)]; }

constexpr double exponent_of_negatives(const LossParameters& p) { return p.numbers[facts_of(p.loss).exponent]; }

constexpr LossParameters parameters_of(Loss loss, const double* numbers) {
  LossParameters p = {loss, {}};
  for (int i = 0; i < facts_of(loss).numbers; ++i) p.numbers[i] = numbers[i];
  return p;
}

}  // namespace focal_ext

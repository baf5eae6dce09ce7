// Owns: the names of the losses and the numbers that a call may choose.
// Must not know: formulas.
#pragma once

namespace focal_ext {

// By number, as in focal_ext/losses: a new one is the last.
enum class Loss : int { sigmoid_focal, quality_focal, varifocal, asymmetric, softmax_focal };
constexpr Loss kLastLoss = Loss::softmax_focal;

struct LossParameters {
  Loss loss;
  double gamma;           // beta of the quality focal loss, gamma of negatives of the asymmetric loss
  double gamma_positive;  // asymmetric loss
  double clip;            // asymmetric loss, 0: off
  double smoothing;       // label smoothing of the sigmoid and softmax focal losses, 0: off
};

// How many numbers a loss has.
constexpr int count_of_parameters(Loss loss) {
  switch (loss) {
    case Loss::quality_focal:
    case Loss::varifocal: return 1;
    case Loss::asymmetric: return 3;
    default: return 2;
  }
}

// The numbers in the order in which the loss's Python function has them.
constexpr LossParameters parameters_of(Loss loss, const double* numbers) {
  switch (loss) {
    case Loss::quality_focal:
    case Loss::varifocal: return {loss, numbers[0], 0, 0, 0};
    case Loss::asymmetric: return {loss, numbers[0], numbers[1], numbers[2], 0};
    default: return {loss, numbers[0], 0, 0, numbers[1]};
  }
}

}  // namespace focal_ext

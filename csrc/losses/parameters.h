// Owns: the names of the losses and the numbers that a call may choose.
// Must not know: formulas.
#pragma once

namespace focal_ext {

// By number, as Loss in focal_ext/_call.py: a new one is the last.
enum class Loss : int { sigmoid_focal, quality_focal, varifocal, asymmetric, softmax_focal };
constexpr Loss kLastLoss = Loss::softmax_focal;

struct LossParameters {
  Loss loss;
  double gamma;           // beta of the quality focal loss, gamma of negatives of the asymmetric loss
  double gamma_positive;  // asymmetric loss
  double clip;            // asymmetric loss, 0: off
  double smoothing;       // label smoothing of the sigmoid and softmax focal losses, 0: off
};

}  // namespace focal_ext

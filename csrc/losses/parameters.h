// Owns: what a call chooses of a loss: which, and its numbers.
// Must not know: which losses there are (list.h), formulas.
#pragma once

namespace focal_ext {

enum class Loss : int;

struct LossParameters {
  Loss loss;
  double numbers[4];
  bool is_per_row = false;  // the loss is one number a row, not one a logit
};

}  // namespace focal_ext

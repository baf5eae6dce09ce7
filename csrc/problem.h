// Owns: the plain description of one call, the only thing that passes between the op registration and the CPU and CUDA
// kernels.
// Must not know: torch, formulas. Everything is checked before it gets here; kernels do not validate.
#pragma once
#include <stdint.h>

#include "losses/parameters.h"

namespace focal_ext {

enum class Scalar : int { f32, f64, bf16, f16 };  // logits; acc_t is double for f64, float for the others

inline int64_t size_of(Scalar scalar) { return scalar == Scalar::f64 ? 8 : scalar == Scalar::f32 ? 4 : 2; }
inline bool is_half(Scalar scalar) { return size_of(scalar) == 2; }

// How targets are stored. Class ids: one integer a row. Dense: one number a logit.
// Dense integers but bytes are known to the CPU alone.
enum class Target : int {
  u8,
  i8,
  u16,
  i16,
  u32,
  i32,
  u64,
  i64,
  dense_u8,
  dense_scalar,
  dense_acc,
  dense_i8,
  dense_i16,
  dense_i32,
  dense_i64
};

// of class ids: u8 and i8 1, up to u64 and i64 8
inline int64_t size_of(Target ids) { return int64_t(1) << int(ids) / 2; }

inline bool is_dense(Target target) { return target >= Target::dense_u8; }

inline int64_t size_of_dense(Target dense, Scalar logits) {
  switch (dense) {
    case Target::dense_scalar: return size_of(logits);
    case Target::dense_acc: return logits == Scalar::f64 ? 8 : 4;
    case Target::dense_i16: return 2;
    case Target::dense_i32: return 4;
    case Target::dense_i64: return 8;
    default: return 1;
  }
}

// Dense ones, of which others than 0, 1 and the ignored one are bad.
inline bool are_integers(Target dense) { return dense == Target::dense_u8 || dense >= Target::dense_i8; }

// What the reduced loss and the gradient are divided by.
enum class Divisor : int {
  value,     // divisor_value
  tensor,    // *divisor_tensor, an acc_t on the device of the logits
  kept,      // logits that are not ignored, at least 1 ("mean")
  positives  // class ids: positive rows, at least 1; of softmax losses, of any targets: rows that are not ignored
};

struct Problem {
  // Logits [rows, classes], contiguous, at any alignment of their own type.
  const void* inputs;
  Scalar scalar;
  int64_t rows, classes;
  // of equally many neighbouring rows, each with a reduced loss and a divisor of its own; no rows may be no groups
  int64_t groups = 1;

  const void* targets;  // [rows] ids or [rows, classes] dense, contiguous
  Target target;
  bool has_ignore_index;
  // Tested before all else. Another id is positive in [0, classes), background at -1 and other_background (below), and
  // gives NaN elsewhere; softmax losses know no background. A dense target that equals it is ignored, with its whole
  // row under a softmax loss; another integer than 0 and 1 gives NaN.
  int64_t ignore_index;

  const void* scores;  // class ids: acc_t[rows], the target of a positive row's class; null means 1

  LossParameters loss_parameters;
  // factors of a target of 1 and of 0, (1, 1) when alpha is off; unused with `alpha`
  double alpha_positive, alpha_negative;
  // acc_t[classes] or null: alpha_c for positives of class c, 1 - alpha_c for negatives
  const void* alpha;
  const void* weight;                     // acc_t or null; element (row, c) at row * row_stride + c * class_stride
  int64_t weight_row_stride, weight_class_stride;

  Divisor divisor;
  double divisor_value;
  const void* divisor_tensor;
  bool divisor_per_group;  // acc_t[groups], else one acc_t

  // Upstream factor of the gradient: null means 1; one acc_t, with grad_output_per_group acc_t[groups], with
  // grad_output_per_element a scalar_t per element of the loss map.
  const void* grad_output;
  bool grad_output_per_group, grad_output_per_element;

  // Results wanted; null means not wanted.
  void* loss;      // acc_t[groups]: each sum divided by its divisor
  void* loss_map;  // scalar_t per logit, or per row where a row has one loss; undivided
  void* gradient;  // scalar_t per logit, divided; may be `inputs` itself
};

inline const void* advanced(const void* p, int64_t bytes) { return p ? static_cast<const char*>(p) + bytes : nullptr; }
inline void* advanced(void* p, int64_t bytes) { return p ? static_cast<char*>(p) + bytes : nullptr; }

// One level of a feature pyramid, logits [images, anchors * classes, height, width] with channel anchor * classes +
// class.
struct Level {
  const void* inputs;
  void* gradient;      // null: not wanted; may be `inputs` itself
  int64_t positions;   // height * width
  bool channels_last;  // [images, positions, anchors, classes] in memory, else [images, anchors, classes, positions]
};

// A pyramid. `problem` has the targets and weights of all anchors, [images, sum of positions * anchors]: an image's
// levels one after the other, in each the positions, the anchor fastest. Its own inputs and gradient are not used.
// Dense targets, and unreduced losses of single logits, lie as the logits of the only level do.
struct Pyramid {
  Problem problem;  // its groups are 1, or the images
  // weight is acc_t[images], else null, acc_t[rows], or acc_t[classes] if it has a stride of classes
  bool weight_per_image;
  int64_t images, anchors;
  const Level* levels;
  int64_t level_count;
};

// The id of background beside -1: of one class 1 would be a binary label to many, and is bad.
inline int64_t other_background(int64_t classes) { return classes == 1 ? -1 : classes; }

inline int64_t numel(const Problem& p) { return p.rows * p.classes; }

// The dense target that is ignored; NaN, which equals none, without one.
inline double ignored_target(const Problem& p) {
  return p.has_ignore_index ? double(p.ignore_index) : double(__builtin_nan(""));
}

// Group `g` as a problem of its own.
inline Problem group_of(const Problem& whole, int64_t g) {
  Problem p = whole;
  const int64_t acc_size = p.scalar == Scalar::f64 ? 8 : 4;
  p.groups = 1;
  p.rows = whole.rows / whole.groups;
  const int64_t row = g * p.rows, element = row * p.classes, loss = g * acc_size;
  p.inputs = advanced(p.inputs, element * size_of(p.scalar));
  p.gradient = advanced(p.gradient, element * size_of(p.scalar));
  p.targets =
      advanced(p.targets, is_dense(p.target) ? element * size_of_dense(p.target, p.scalar) : row * size_of(p.target));
  p.scores = advanced(p.scores, row * acc_size);
  p.weight = advanced(p.weight, row * p.weight_row_stride * acc_size);
  if (p.divisor_per_group) p.divisor_tensor = advanced(p.divisor_tensor, loss);
  if (p.grad_output_per_group) p.grad_output = advanced(p.grad_output, loss);
  p.divisor_per_group = p.grad_output_per_group = false;
  p.loss = advanced(p.loss, loss);
  return p;
}

// Whether the loss is one number a row; else it is one a logit.
inline bool has_row_losses(const Problem& p) { return p.loss_parameters.is_per_row; }

}  // namespace focal_ext

// Owns: the ops over logits in rows: their schemas, their registration, and the step from tensors to the plain Problem.
// Must not know: formulas, loops, kernels. Arguments are checked in Python (focal_ext/_call.py), where an error can be a
// ValueError; here only what would corrupt memory is checked again.
#include <tuple>

#include "cpu/run.h"
#include "tensors.h"

#ifdef FOCAL_EXT_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace focal_ext {
namespace {

// The arguments every op begins with, owning what the Problem points to.
struct Arguments {
  Tensor inputs, targets;
  OptionalTensor scores, weight, alpha, normalizer;
  int64_t loss;
  double gamma;
  std::optional<int64_t> ignore_index;
  double alpha_positive, alpha_negative, smoothing;
  int64_t divisor;
  double divisor_value, gamma_positive, clip;

  Problem problem() {
    inputs = as_contiguous(inputs, "inputs");
    targets = as_contiguous(targets, "targets");
    Problem p{};
    p.classes = inputs.size(-1);
    p.rows = 1;
    for (int64_t d = 0; d + 1 < inputs.dim(); ++d) p.rows *= inputs.size(d);
    p.inputs = inputs.const_data_ptr();
    p.scalar = scalar_of(inputs);
    p.target = targets.dim() == inputs.dim() ? dense_target(inputs, targets) : id_target(targets);
    STD_TORCH_CHECK(targets.numel() == (is_dense(p.target) ? inputs.numel() : p.rows) && on_device_of(targets, inputs),
        "targets: must be on the device of inputs and hold one id a row or one value a logit");
    p.targets = targets.const_data_ptr();
    p.has_ignore_index = ignore_index.has_value();
    p.ignore_index = ignore_index.value_or(0);
    STD_TORCH_CHECK(loss >= 0 && loss <= int64_t(kLastLoss), "loss: unknown");
    p.loss_parameters = {Loss(loss), gamma, gamma_positive, clip, smoothing};
    check_numbers(p.loss_parameters, alpha_positive, alpha_negative, divisor_value);
    p.scores = checked_data(scores, inputs, p.rows, "scores");
    p.alpha_positive = alpha_positive;
    p.alpha_negative = alpha_negative;
    p.alpha = checked_data(alpha, inputs, p.classes, "alpha");
    if (weight) {
      STD_TORCH_CHECK(weight->dim() == 2, "weight: must be [rows or 1, classes or 1]");
      const int64_t rows = weight->size(0), classes = weight->size(1);
      STD_TORCH_CHECK((rows == 1 || rows == p.rows) && (classes == 1 || classes == p.classes), "weight: must be [rows or 1, classes or 1]");
      p.weight = checked_data(weight, inputs, rows * classes, "weight");
      p.weight_row_stride = rows == 1 ? 0 : classes;
      p.weight_class_stride = classes == 1 ? 0 : 1;
    }
    p.divisor = Divisor(divisor);
    p.divisor_value = divisor_value;
    p.divisor_tensor = checked_data(normalizer, inputs, 1, "normalizer");
    STD_TORCH_CHECK(divisor >= 0 && divisor <= int64_t(Divisor::positives) && (p.divisor != Divisor::tensor || p.divisor_tensor) &&
                        (divisor < int64_t(Divisor::positives) || has_row_losses(p) || !is_dense(p.target)),
        "divisor: does not fit the other arguments");
    return p;
  }
};

#define FOCAL_EXT_ARGUMENTS                                                                                                                                 \
  Tensor inputs, Tensor targets, OptionalTensor scores, OptionalTensor weight, OptionalTensor alpha, OptionalTensor normalizer, int64_t loss, double gamma, \
      std::optional<int64_t> ignore_index, double alpha_positive, double alpha_negative, double smoothing, int64_t divisor, double divisor_value,           \
      double gamma_positive, double clip
#define FOCAL_EXT_PASS                                                                                                                                \
  Arguments {                                                                                                                                         \
    inputs, targets, scores, weight, alpha, normalizer, loss, gamma, ignore_index, alpha_positive, alpha_negative, smoothing, divisor, divisor_value, \
        gamma_positive, clip                                                                                                                          \
  }
// With what follows the names of the last, which is nothing or a default.
#define FOCAL_EXT_SCHEMA_WITH(none, zero, one)                                                                                                         \
  " inputs, Tensor targets, Tensor? scores, Tensor? weight, Tensor? alpha, Tensor? normalizer, int loss, float gamma, "                                \
  "int? ignore_index, float alpha_positive" one ", float alpha_negative" one ", float smoothing" zero ", int divisor" none ", float divisor_value" one \
  ", float gamma_positive" zero ", float clip" zero
#define FOCAL_EXT_SCHEMA FOCAL_EXT_SCHEMA_WITH("", "", "")

void run(const Problem& problem, const Tensor& inputs) {
#ifdef FOCAL_EXT_WITH_CUDA
  if (inputs.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(inputs.get_device_index());
    const int64_t bytes = int64_t(cuda::workspace_bytes(problem));
    const Tensor workspace = empty(inputs, 1, &bytes, ScalarType::Byte);
    return check_launch(cuda::run(problem, workspace.mutable_data_ptr(), current_stream(inputs)));
  }
#endif
  STD_TORCH_CHECK(inputs.is_cpu(), "focal_ext: no kernel for this device");
  cpu::run(problem, on_torch_threads);
}

Tensor loss_only(FOCAL_EXT_ARGUMENTS) {
  Arguments a = FOCAL_EXT_PASS;
  Problem p = a.problem();
  Tensor result = empty_loss(a.inputs);
  p.loss = result.mutable_data_ptr();
  run(p, a.inputs);
  return result;
}

std::tuple<Tensor, Tensor> loss_and_gradient(FOCAL_EXT_ARGUMENTS) {
  Arguments a = FOCAL_EXT_PASS;
  Problem p = a.problem();
  Tensor result = empty_loss(a.inputs), gradient = empty_logits(a.inputs);
  p.loss = result.mutable_data_ptr();
  p.gradient = gradient.mutable_data_ptr();
  run(p, a.inputs);
  return {result, gradient};
}

Tensor loss_map(FOCAL_EXT_ARGUMENTS) {
  Arguments a = FOCAL_EXT_PASS;
  Problem p = a.problem();
  Tensor result = has_row_losses(p) ? empty(a.inputs, a.inputs.dim() - 1, a.inputs.sizes().data(), a.inputs.scalar_type()) : empty_logits(a.inputs);
  p.loss_map = result.mutable_data_ptr();
  run(p, a.inputs);
  return result;
}

// Writes the gradient for an upstream factor (0-d, accumulation dtype) or map (the unreduced loss's shape, the logits' dtype).
void write_gradient(Arguments& a, const Tensor& grad_output, void* to) {
  Problem p = a.problem();
  const Tensor upstream = as_contiguous(grad_output, "grad_output");
  p.grad_output_per_element = grad_output.dim() > 0;
  STD_TORCH_CHECK(on_device_of(upstream, a.inputs) && (p.grad_output_per_element ? upstream.numel() == (has_row_losses(p) ? p.rows : numel(p)) &&
                                                                                       upstream.scalar_type() == a.inputs.scalar_type()
                                                                                 : upstream.scalar_type() == accumulation_type(a.inputs)),
      "grad_output: must be 0-d of the accumulation dtype, or of the shape of the unreduced loss and the dtype of inputs, and on their device");
  p.grad_output = upstream.const_data_ptr();
  p.gradient = to;
  run(p, a.inputs);
}

Tensor gradient(FOCAL_EXT_ARGUMENTS, Tensor grad_output) {
  Arguments a = FOCAL_EXT_PASS;
  Tensor result = empty_logits(inputs);
  write_gradient(a, grad_output, result.mutable_data_ptr());
  return result;
}

void gradient_(FOCAL_EXT_ARGUMENTS, Tensor grad_output) {
  STD_TORCH_CHECK(inputs.is_contiguous(), "inputs: must be contiguous to be overwritten");
  check_allocated(inputs, "inputs");
  const Bytes written = bytes_of(inputs);
  check_apart(written, targets, "targets");
  check_apart(written, scores, "scores");
  check_apart(written, weight, "weight");
  check_apart(written, alpha, "alpha");
  check_apart(written, normalizer, "normalizer");
  check_apart(written, grad_output, "grad_output");
  Arguments a = FOCAL_EXT_PASS;
  write_gradient(a, grad_output, inputs.mutable_data_ptr());
}

void scale_(Tensor gradient, Tensor factor) {
  STD_TORCH_CHECK(gradient.is_contiguous() && factor.numel() == 1 && factor.scalar_type() == accumulation_type(gradient) && on_device_of(factor, gradient),
      "factor: must be one number of the accumulation dtype, for a contiguous gradient on the same device");
  check_allocated(gradient, "gradient");
  check_allocated(factor, "factor");
  check_apart(bytes_of(gradient), factor, "factor");
#ifdef FOCAL_EXT_WITH_CUDA
  if (gradient.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
    return check_launch(cuda::scale(gradient.mutable_data_ptr(), scalar_of(gradient), gradient.numel(), factor.const_data_ptr(), current_stream(gradient)));
  }
#endif
  const double value =
      gradient.scalar_type() == ScalarType::Double ? *static_cast<const double*>(factor.const_data_ptr()) : *static_cast<const float*>(factor.const_data_ptr());
  cpu::scale(gradient.mutable_data_ptr(), scalar_of(gradient), gradient.numel(), value, on_torch_threads);
}

// A 0-d int64, not an int: a graph can hold it.
Tensor first_bad_id(Tensor targets, int64_t classes, std::optional<int64_t> ignore_index, bool background) {
  const Tensor ids = as_contiguous(targets, "targets");
  STD_TORCH_CHECK(classes >= 0, "classes: must be at least 0, got ", classes);
  Problem p{};
  p.targets = ids.const_data_ptr();
  p.rows = ids.numel();
  p.classes = classes;
  p.has_ignore_index = ignore_index.has_value();
  p.ignore_index = ignore_index.value_or(0);
  p.target = id_target(ids);
  Tensor result = empty(ids, 0, nullptr, ScalarType::Long);
  *static_cast<int64_t*>(result.mutable_data_ptr()) = cpu::first_bad_id(p, background, on_torch_threads);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY(focal_ext, m) {
  m.def("loss(Tensor" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("loss_and_gradient(Tensor" FOCAL_EXT_SCHEMA_WITH("=0", "=0.0", "=1.0") ") -> (Tensor, Tensor)");
  m.def("loss_map(Tensor" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("gradient(Tensor" FOCAL_EXT_SCHEMA ", Tensor grad_output) -> Tensor");
  m.def("gradient_(Tensor(a!)" FOCAL_EXT_SCHEMA ", Tensor grad_output) -> ()");
  m.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
  m.def("first_bad_id(Tensor targets, int classes, int? ignore_index, bool background=True) -> Tensor");
}

#define FOCAL_EXT_REGISTER(m)                                 \
  m.impl("loss", TORCH_BOX(&loss_only));                      \
  m.impl("loss_and_gradient", TORCH_BOX(&loss_and_gradient)); \
  m.impl("loss_map", TORCH_BOX(&loss_map));                   \
  m.impl("gradient", TORCH_BOX(&gradient));                   \
  m.impl("gradient_", TORCH_BOX(&gradient_));                 \
  m.impl("scale_", TORCH_BOX(&scale_))

STABLE_TORCH_LIBRARY_IMPL(focal_ext, CPU, m) {
  FOCAL_EXT_REGISTER(m);
  m.impl("first_bad_id", TORCH_BOX(&first_bad_id));
}

#ifdef FOCAL_EXT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(focal_ext, CUDA, m) { FOCAL_EXT_REGISTER(m); }
#endif

}  // namespace focal_ext

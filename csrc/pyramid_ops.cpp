// Owns: the ops over a feature pyramid's own layout: their schemas, their registration, and the step from tensors to the plain Pyramid.
// Must not know: formulas, loops, kernels. Arguments are checked in Python (focal_ext/_pyramid.py).
#include <tuple>
#include <vector>

#include "cpu/run.h"
#include "tensors.h"

#ifdef FOCAL_EXT_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace focal_ext {
namespace {

using Tensors = std::vector<Tensor>;

bool is_channels_last(const Tensor& t) {
  const int64_t expected[4] = {t.size(1) * t.size(2) * t.size(3), 1, t.size(3) * t.size(1), t.size(1)};
  for (int64_t d = 0; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != expected[d]) return false;
  return true;
}

// The arguments every op begins with, owning what the Pyramid points to.
struct Arguments {
  Tensors levels;
  Tensor targets;
  OptionalTensor weight, alpha, normalizer;
  int64_t classes;
  double gamma, smoothing, alpha_positive, alpha_negative;
  std::optional<int64_t> ignore_index;
  int64_t divisor;
  double divisor_value;
  std::vector<Level> plain = {};

  Pyramid pyramid() {
    STD_TORCH_CHECK(!levels.empty() && classes > 0, "levels: at least one, with at least one class");
    const Tensor& first = levels[0];
    Pyramid result{};
    result.images = first.size(0);
    result.anchors = first.size(1) / classes;
    int64_t anchors = 0;
    for (const Tensor& level : levels) {
      STD_TORCH_CHECK(level.dim() == 4 && level.size(0) == result.images && level.size(1) == result.anchors * classes &&
                          level.scalar_type() == first.scalar_type() && on_device_of(level, first),
          "levels: must be [images, anchors * classes, height, width] of one dtype on one device");
      const bool planes = level.is_contiguous();
      STD_TORCH_CHECK(planes || is_channels_last(level), "levels: must be contiguous or channels_last");
      check_allocated(level, "levels");
      plain.push_back({level.const_data_ptr(), nullptr, level.size(2) * level.size(3), !planes});
      anchors += plain.back().positions * result.anchors;
    }
    result.levels = plain.data();
    result.level_count = int64_t(plain.size());
    targets = as_contiguous(targets, "targets");
    Problem& p = result.problem;
    p.scalar = scalar_of(first);
    p.rows = result.images * anchors;
    p.classes = classes;
    p.target = id_target(targets);
    STD_TORCH_CHECK(targets.numel() == p.rows && on_device_of(targets, first), "targets: must hold one class id an anchor, on the device of the levels");
    p.targets = targets.const_data_ptr();
    p.has_ignore_index = ignore_index.has_value();
    p.ignore_index = ignore_index.value_or(0);
    p.loss_parameters = {Loss::sigmoid_focal, gamma, 0, 0, smoothing};
    check_numbers(p.loss_parameters, alpha_positive, alpha_negative, divisor_value);
    p.alpha_positive = alpha_positive;
    p.alpha_negative = alpha_negative;
    p.alpha = checked_data(alpha, first, classes, "alpha");
    result.weight_per_image = weight && weight->numel() == result.images && result.images != p.rows;
    p.weight = checked_data(weight, first, result.weight_per_image ? result.images : p.rows, "weight");
    p.divisor = Divisor(divisor);
    p.divisor_value = divisor_value;
    p.divisor_tensor = checked_data(normalizer, first, 1, "normalizer");
    STD_TORCH_CHECK(divisor >= 0 && divisor <= int64_t(Divisor::positives) && (p.divisor != Divisor::tensor || p.divisor_tensor),
        "divisor: does not fit the other arguments");
    return result;
  }

  // Gradients in each level's own memory format, or over the levels themselves.
  Tensors gradients(bool in_place) {
    Tensors result;
    for (size_t i = 0; i < levels.size(); ++i) {
      const Tensor& level = levels[i];
      result.push_back(in_place ? level : with_huge_pages(empty_strided(level, 4, level.sizes().data(), level.strides().data(), level.scalar_type())));
      plain[i].gradient = result[i].mutable_data_ptr();
    }
    return result;
  }

  // That the levels may be written: none is another's memory, or that of what is read.
  void check_written(const Tensor& grad_output, const OptionalTensor& loss) const {
    for (size_t i = 0; i < levels.size(); ++i) {
      const Bytes written = bytes_of(levels[i]);
      for (size_t j = 0; j < i; ++j) {
        const Bytes other = bytes_of(levels[j]);
        STD_TORCH_CHECK(other.end <= written.begin || written.end <= other.begin, "levels: two share memory; clone one of them");
      }
      for (const OptionalTensor& read : {OptionalTensor(targets), weight, alpha, normalizer, OptionalTensor(grad_output), loss})
        if (read) check_apart(written, *read, "levels");
    }
  }

  const void* upstream(const Tensor& grad_output) {
    STD_TORCH_CHECK(grad_output.numel() == 1 && grad_output.scalar_type() == accumulation_type(levels[0]) && on_device_of(grad_output, levels[0]),
        "grad_output: must be one number of the accumulation dtype, on the device of the levels");
    check_allocated(grad_output, "grad_output");
    return grad_output.const_data_ptr();
  }
};

#define FOCAL_EXT_ARGUMENTS                                                                                                                                \
  Tensors levels, Tensor targets, OptionalTensor weight, OptionalTensor alpha, OptionalTensor normalizer, int64_t classes, double gamma, double smoothing, \
      double alpha_positive, double alpha_negative, std::optional<int64_t> ignore_index, int64_t divisor, double divisor_value
#define FOCAL_EXT_PASS                                                                                                                                      \
  Arguments { levels, targets, weight, alpha, normalizer, classes, gamma, smoothing, alpha_positive, alpha_negative, ignore_index, divisor, divisor_value }
#define FOCAL_EXT_SCHEMA                                                                                                    \
  " levels, Tensor targets, Tensor? weight, Tensor? alpha, Tensor? normalizer, int classes, float gamma, float smoothing, " \
  "float alpha_positive, float alpha_negative, int? ignore_index, int divisor, float divisor_value"

void run(const Pyramid& pyramid, const Tensor& like) {
#ifdef FOCAL_EXT_WITH_CUDA
  if (like.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const int64_t bytes = int64_t(cuda::workspace_bytes(pyramid));
    const Tensor workspace = empty(like, 1, &bytes, ScalarType::Byte);
    return check_launch(cuda::run(pyramid, workspace.mutable_data_ptr(), current_stream(like)));
  }
#endif
  STD_TORCH_CHECK(like.is_cpu(), "focal_ext: no kernel for this device");
  cpu::run(pyramid, on_torch_threads);
}

Tensor pyramid_loss(FOCAL_EXT_ARGUMENTS) {
  Arguments a = FOCAL_EXT_PASS;
  Pyramid p = a.pyramid();
  Tensor loss = empty_loss(levels[0]);
  p.problem.loss = loss.mutable_data_ptr();
  run(p, a.levels[0]);
  return loss;
}

std::tuple<Tensor, Tensors> pyramid_loss_and_gradient(FOCAL_EXT_ARGUMENTS) {
  Arguments a = FOCAL_EXT_PASS;
  Pyramid p = a.pyramid();
  Tensor loss = empty_loss(levels[0]);
  p.problem.loss = loss.mutable_data_ptr();
  Tensors gradients = a.gradients(false);
  run(p, a.levels[0]);
  return {loss, gradients};
}

Tensors pyramid_gradient(FOCAL_EXT_ARGUMENTS, Tensor grad_output) {
  Arguments a = FOCAL_EXT_PASS;
  Pyramid p = a.pyramid();
  p.problem.grad_output = a.upstream(grad_output);
  Tensors gradients = a.gradients(false);
  run(p, a.levels[0]);
  return gradients;
}

// Writes the gradient over the levels, and with `loss`, an accumulation number, the loss into it.
void pyramid_gradient_(FOCAL_EXT_ARGUMENTS, Tensor grad_output, OptionalTensor loss) {
  Arguments a = FOCAL_EXT_PASS;
  Pyramid p = a.pyramid();
  p.problem.grad_output = a.upstream(grad_output);
  a.check_written(grad_output, loss);
  if (checked_data(loss, levels[0], 1, "loss")) p.problem.loss = loss->mutable_data_ptr();
  a.gradients(true);
  run(p, a.levels[0]);
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(focal_ext, m) {
  m.def("pyramid_loss(Tensor[]" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("pyramid_loss_and_gradient(Tensor[]" FOCAL_EXT_SCHEMA ") -> (Tensor, Tensor[])");
  m.def("pyramid_gradient(Tensor[]" FOCAL_EXT_SCHEMA ", Tensor grad_output) -> Tensor[]");
  m.def("pyramid_gradient_(Tensor(a!)[]" FOCAL_EXT_SCHEMA ", Tensor grad_output, Tensor(b!)? loss) -> ()");
}

#define FOCAL_EXT_REGISTER(m)                                                 \
  m.impl("pyramid_loss", TORCH_BOX(&pyramid_loss));                           \
  m.impl("pyramid_loss_and_gradient", TORCH_BOX(&pyramid_loss_and_gradient)); \
  m.impl("pyramid_gradient", TORCH_BOX(&pyramid_gradient));                   \
  m.impl("pyramid_gradient_", TORCH_BOX(&pyramid_gradient_))

STABLE_TORCH_LIBRARY_IMPL(focal_ext, CPU, m) { FOCAL_EXT_REGISTER(m); }

#ifdef FOCAL_EXT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(focal_ext, CUDA, m) { FOCAL_EXT_REGISTER(m); }
#endif

}  // namespace focal_ext

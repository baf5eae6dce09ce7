// Owns: the ops, over logits in rows and over the levels of a pyramid: schemas, registration, the choice of the device.
// Must not know: formulas, loops, kernels, what an argument may be.
#include <tuple>

#include "arguments.h"
#include "cpu/run.h"

#ifdef FOCAL_EXT_WITH_CUDA
#include "cuda/launch.h"
#endif

namespace focal_ext {
namespace {

// As every op is given them behind the logits.
#define FOCAL_EXT_ARGUMENTS                                                                                      \
  Tensor targets, OptionalTensor scores, OptionalTensor weight, OptionalTensor alpha, OptionalTensor normalizer, \
      int64_t loss, std::vector<double> numbers, std::optional<int64_t> ignore_index, int64_t divisor,           \
      int64_t classes, int64_t batch_dims
#define FOCAL_EXT_PASS                                                                                                \
  Arguments { targets, scores, weight, alpha, normalizer, loss, numbers, ignore_index, divisor, classes, batch_dims }
#define FOCAL_EXT_SCHEMA                                                                                             \
  ", Tensor targets, Tensor? scores, Tensor? weight, Tensor? alpha, Tensor? normalizer, int loss, float[] numbers, " \
  "int? ignore_index, "                                                                                              \
  "int divisor, int classes, int batch_dims"

template <class Layout>
void run(Layout& layout) {
  const Tensor& like = layout.like();
#ifdef FOCAL_EXT_WITH_CUDA
  if (like.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    const int64_t bytes = int64_t(cuda::workspace_bytes(layout.plain));
    const Tensor workspace = empty(like, 1, &bytes, ScalarType::Byte);
    return check_launch(cuda::run(layout.plain, workspace.mutable_data_ptr(), current_stream(like)));
  }
#endif
  STD_TORCH_CHECK(like.is_cpu(), "focal_ext: no kernel for this device");
  cpu::run(layout.plain, on_torch_threads);
}

template <class Layout, class Logits>
Tensor loss_only(Logits logits, FOCAL_EXT_ARGUMENTS) {
  Layout layout(logits, FOCAL_EXT_PASS);
  Tensor result = layout.new_loss();
  layout.problem().loss = result.mutable_data_ptr();
  run(layout);
  return result;
}

template <class Layout, class Logits>
std::tuple<Tensor, Logits> loss_and_gradient(Logits logits, FOCAL_EXT_ARGUMENTS) {
  Layout layout(logits, FOCAL_EXT_PASS);
  Tensor result = layout.new_loss();
  layout.problem().loss = result.mutable_data_ptr();
  Logits gradient = layout.new_gradient();
  layout.write_gradient(gradient);
  run(layout);
  return {result, gradient};
}

template <class Layout, class Logits>
Tensor loss_map(Logits logits, FOCAL_EXT_ARGUMENTS) {
  STD_TORCH_CHECK(batch_dims == 0, "batch_dims: an unreduced loss has none");
  Layout layout(logits, FOCAL_EXT_PASS);
  Tensor result = layout.new_loss_map();
  run(layout);
  return result;
}

template <class Layout, class Logits>
Logits gradient(Logits logits, FOCAL_EXT_ARGUMENTS, Tensor grad_output) {
  Layout layout(logits, FOCAL_EXT_PASS);
  layout.set_upstream(grad_output);
  Logits result = layout.new_gradient();
  layout.write_gradient(result);
  run(layout);
  return result;
}

// Over the logits, for an upstream factor or map; the loss into `loss_result`, undisturbed by it.
template <class Layout, class Logits>
void gradient_(Logits logits, FOCAL_EXT_ARGUMENTS, Tensor grad_output, OptionalTensor loss_result) {
  Layout::check_written(logits, FOCAL_EXT_PASS, grad_output, loss_result);
  Layout layout(logits, FOCAL_EXT_PASS);
  layout.set_upstream(grad_output);
  if (checked_data(loss_result, layout.like(), layout.problem().groups, "loss"))
    layout.problem().loss = loss_result->mutable_data_ptr();
  layout.write_gradient(logits);
  run(layout);
}

// Whether `factor` has one number for each index of the gradient's leading dimensions, or one for all.
bool leads(const Tensor& factor, const Tensor& gradient) {
  if (factor.numel() == 1) return true;
  bool leads = factor.dim() <= gradient.dim();
  for (int64_t d = 0; leads && d < factor.dim(); ++d) leads = factor.size(d) == gradient.size(d);
  return leads;
}

void scale_(Tensor gradient, Tensor factor) {
  STD_TORCH_CHECK(gradient.is_contiguous() && factor.is_contiguous() && leads(factor, gradient) &&
                      factor.scalar_type() == accumulation_type(gradient) && on_device_of(factor, gradient),
      "factor: must be one number, or one for each index of leading dimensions, of the accumulation dtype, for a "
      "contiguous gradient on the same device");
  check_allocated(gradient, "gradient");
  check_allocated(factor, "factor");
  check_apart(bytes_of(gradient), factor, "factor");
#ifdef FOCAL_EXT_WITH_CUDA
  if (gradient.is_cuda()) {
    const torch::stable::accelerator::DeviceGuard guard(gradient.get_device_index());
    return check_launch(cuda::scale(gradient.mutable_data_ptr(), scalar_of(gradient), gradient.numel(),
        factor.const_data_ptr(), factor.numel(), current_stream(gradient)));
  }
#endif
  cpu::scale(gradient.mutable_data_ptr(), scalar_of(gradient), gradient.numel(), factor.const_data_ptr(),
      factor.numel(), on_torch_threads);
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
  m.def("loss(Tensor inputs" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("loss_and_gradient(Tensor inputs" FOCAL_EXT_SCHEMA ") -> (Tensor, Tensor)");
  m.def("loss_map(Tensor inputs" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("gradient(Tensor inputs" FOCAL_EXT_SCHEMA ", Tensor grad_output) -> Tensor");
  m.def("gradient_(Tensor(a!) inputs" FOCAL_EXT_SCHEMA ", Tensor grad_output, Tensor(b!)? loss_result=None) -> ()");
  m.def("pyramid_loss(Tensor[] levels" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("pyramid_loss_and_gradient(Tensor[] levels" FOCAL_EXT_SCHEMA ") -> (Tensor, Tensor[])");
  m.def("pyramid_loss_map(Tensor[] levels" FOCAL_EXT_SCHEMA ") -> Tensor");
  m.def("pyramid_gradient(Tensor[] levels" FOCAL_EXT_SCHEMA ", Tensor grad_output) -> Tensor[]");
  m.def("pyramid_gradient_(Tensor(a!)[] levels" FOCAL_EXT_SCHEMA
        ", Tensor grad_output, Tensor(b!)? loss_result=None) -> ()");
  m.def("scale_(Tensor(a!) gradient, Tensor factor) -> ()");
  m.def("first_bad_id(Tensor targets, int classes, int? ignore_index, bool background=True) -> Tensor");
}

// Each op of both layouts by a name of its own: GCC 12 instantiates no template whose address a macro's template
// argument takes.
constexpr auto rows_loss = &loss_only<Rows, Tensor>;
constexpr auto rows_loss_and_gradient = &loss_and_gradient<Rows, Tensor>;
constexpr auto rows_loss_map = &loss_map<Rows, Tensor>;
constexpr auto rows_gradient = &gradient<Rows, Tensor>;
constexpr auto rows_gradient_ = &gradient_<Rows, Tensor>;
constexpr auto levels_loss = &loss_only<Levels, Tensors>;
constexpr auto levels_loss_and_gradient = &loss_and_gradient<Levels, Tensors>;
constexpr auto levels_loss_map = &loss_map<Levels, Tensors>;
constexpr auto levels_gradient = &gradient<Levels, Tensors>;
constexpr auto levels_gradient_ = &gradient_<Levels, Tensors>;

#define FOCAL_EXT_REGISTER(m)                                               \
  m.impl("loss", TORCH_BOX(rows_loss));                                     \
  m.impl("loss_and_gradient", TORCH_BOX(rows_loss_and_gradient));           \
  m.impl("loss_map", TORCH_BOX(rows_loss_map));                             \
  m.impl("gradient", TORCH_BOX(rows_gradient));                             \
  m.impl("gradient_", TORCH_BOX(rows_gradient_));                           \
  m.impl("pyramid_loss", TORCH_BOX(levels_loss));                           \
  m.impl("pyramid_loss_and_gradient", TORCH_BOX(levels_loss_and_gradient)); \
  m.impl("pyramid_loss_map", TORCH_BOX(levels_loss_map));                   \
  m.impl("pyramid_gradient", TORCH_BOX(levels_gradient));                   \
  m.impl("pyramid_gradient_", TORCH_BOX(levels_gradient_));                 \
  m.impl("scale_", TORCH_BOX(&scale_))

STABLE_TORCH_LIBRARY_IMPL(focal_ext, CPU, m) {
  FOCAL_EXT_REGISTER(m);
  m.impl("first_bad_id", TORCH_BOX(&first_bad_id));
}

#ifdef FOCAL_EXT_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(focal_ext, CUDA, m) { FOCAL_EXT_REGISTER(m); }
#endif

}  // namespace focal_ext

// Owns: the losses for C++ programs: the ops of libfocal_ext.so called through torch's dispatcher, once differentiable.
// Must not know: formulas, kernels. The formulas alone, without torch, are in <focal_ext/losses/...>.
//
//   find_package(Torch REQUIRED)
//   find_package(focal_ext REQUIRED)
//   target_link_libraries(program PRIVATE focal_ext::focal_ext ${TORCH_LIBRARIES})
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/engine.h>

#include <cmath>
#include <optional>
#include <string>
#include <unordered_map>
#include <utility>
#include <variant>

extern "C" const char* focal_ext_version();

namespace focal_ext {

enum class Reduction { none, sum, mean };
struct Positives {};  // divide by the number of positive class ids, at least 1

// The keyword arguments of the Python function, with its defaults; an undefined tensor is None.
struct SigmoidFocalLossOptions {
  double alpha = 0.25;  // factor of positives, 1 - alpha that of negatives; -1: both 1
  double gamma = 2;
  Reduction reduction = Reduction::none;
  // with Reduction::sum; a tensor is 0-d, on the device of inputs
  std::variant<double, at::Tensor, Positives> normalizer = 1.0;
  at::Tensor weight = {};  // broadcasts to inputs
  at::Tensor class_alpha = {};  // one alpha a class, instead of alpha
  std::optional<int64_t> ignore_index = -2;  // class id or dense target that is skipped
};

namespace detail {

using Named = std::unordered_map<std::string, c10::IValue>;
constexpr int64_t kByValue = 0, kByTensor = 1, kByKept = 2, kByPositives = 3;  // enum Divisor of csrc/problem.h

// An argument that only other losses use stands at its neutral value.
inline c10::IValue neutral(const c10::Argument& argument) {
  if (argument.default_value()) return *argument.default_value();
  switch (argument.type()->kind()) {
    case c10::TypeKind::OptionalType: return {};
    case c10::TypeKind::FloatType: return 0.0;
    case c10::TypeKind::IntType: return int64_t(0);
    case c10::TypeKind::BoolType: return false;
    default:
      TORCH_CHECK(false, "focal_ext: this header does not know the argument ", argument.name(), " of libfocal_ext.so ",
          focal_ext_version());
  }
}

inline torch::jit::Stack call(const char* op, const Named& named) {
  const auto handle = c10::Dispatcher::singleton().findSchemaOrThrow((std::string("focal_ext::") + op).c_str(), "");
  torch::jit::Stack stack;
  for (const c10::Argument& argument : handle.schema().arguments()) {
    const auto found = named.find(argument.name());
    stack.push_back(found == named.end() ? neutral(argument) : found->second);
  }
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  handle.callBoxed(stack);
  return stack;
}

inline Named with(Named named, const char* name, const at::Tensor& value) {
  named[name] = value;
  return named;
}

// Sum and mean: the gradient is computed beside the loss, backward only scales it.
struct OnePass : torch::autograd::Function<OnePass> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& inputs, const Named& named) {
    const auto results = call("loss_and_gradient", with(named, "inputs", inputs));
    ctx->save_for_backward({results[1].toTensor()});
    return results[0].toTensor();
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad_outputs) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "focal_ext: the loss is once differentiable in C++");
    const at::Tensor gradient = ctx->get_saved_variables()[0];
    if (torch::autograd::get_current_graph_task_keep_graph()) return {gradient * grad_outputs[0], {}};
    call("scale_",
        {{"gradient", gradient},
            {"factor", grad_outputs[0].to(gradient.scalar_type() == at::kDouble ? at::kDouble : at::kFloat)}});
    return {gradient, {}};
  }
};

// Losses that are not reduced, and fp16, whose unscaled gradients underflow: backward computes them again, with its
// factor.
struct Recompute : torch::autograd::Function<Recompute> {
  static constexpr const char* kTensors[] = {"inputs", "targets", "weight", "alpha", "normalizer"};

  static at::Tensor forward(
      torch::autograd::AutogradContext* ctx, const at::Tensor& inputs, const Named& others, bool reduced) {
    const Named named = with(others, "inputs", inputs);
    torch::autograd::variable_list tensors;  // through autograd, so that a change in place before backward is an error
    for (const char* name : kTensors)
      tensors.push_back(named.at(name).isTensor() ? named.at(name).toTensor() : at::Tensor());
    ctx->save_for_backward(tensors);
    for (const auto& [name, value] : named)
      if (!value.isTensor()) ctx->saved_data[name] = value;
    return call(reduced ? "loss" : "loss_map", named)[0].toTensor();
  }
  static torch::autograd::variable_list backward(
      torch::autograd::AutogradContext* ctx, const torch::autograd::variable_list& grad_outputs) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "focal_ext: the loss is once differentiable in C++");
    const auto tensors = ctx->get_saved_variables();
    Named named(ctx->saved_data.begin(), ctx->saved_data.end());
    for (size_t i = 0; i < tensors.size(); ++i)
      if (tensors[i].defined()) named[kTensors[i]] = tensors[i];
    named["grad_output"] = grad_outputs[0].contiguous();
    return {call("gradient", named)[0].toTensor(), {}, {}};
  }
};

// As the ops take it: [rows or 1, classes or 1] in the accumulation dtype.
inline at::Tensor plain_weight(const at::Tensor& weight, const at::Tensor& inputs, at::ScalarType accumulation) {
  const at::Tensor wide = weight.to(accumulation);
  const int64_t last = wide.dim() ? wide.size(-1) : 1;
  if (wide.numel() == last && wide.dim() <= inputs.dim()) return wide.reshape({1, last}).contiguous();
  auto sizes = inputs.sizes().vec();
  sizes.back() = last;
  return wide.expand(sizes).reshape({-1, last}).contiguous();
}

// Integers as bytes: 0 and 1 as they are, one for what is ignored, one for what is bad and makes its logit NaN.
inline at::Tensor as_bytes(const at::Tensor& targets, std::optional<int64_t>& ignore_index) {
  const at::Tensor ones = targets == 1;
  at::Tensor bytes =
      at::where(ones | (targets == 0), ones.to(at::kByte), at::full({}, 254, targets.options().dtype(at::kByte)));
  if (ignore_index) bytes = bytes.masked_fill(targets == *ignore_index, 255), ignore_index = 255;
  return bytes;
}

inline Named arguments(const at::Tensor& inputs, const at::Tensor& targets, const SigmoidFocalLossOptions& options) {
  TORCH_CHECK_TYPE(at::isFloatingType(inputs.scalar_type()),
      "inputs: logits must be float32, bfloat16, float16 or float64, got ", inputs.scalar_type());
  TORCH_CHECK_VALUE(inputs.dim() > 0, "inputs: logits need shape (..., classes), got a 0-d tensor");
  const bool dense = targets.sizes() == inputs.sizes();
  TORCH_CHECK_VALUE(dense || targets.sizes() == inputs.sizes().slice(0, inputs.dim() - 1),
      "targets: shape must be inputs' without its last axis for class ids or ", inputs.sizes(),
      " for dense targets, got ", targets.sizes());
  TORCH_CHECK_VALUE(
      options.gamma >= 0 && std::isfinite(options.gamma), "gamma: must be finite and >= 0, got ", options.gamma);
  TORCH_CHECK_VALUE(options.alpha == -1 || (options.alpha >= 0 && options.alpha <= 1),
      "alpha: must be in [0, 1], or -1 to switch it off, got ", options.alpha);
  TORCH_CHECK_VALUE(
      !options.class_alpha.defined() || options.class_alpha.sizes() == inputs.sizes().slice(inputs.dim() - 1),
      "class_alpha: must hold one value a class, ", inputs.size(-1), ", got shape ", options.class_alpha.sizes());
  const auto* value = std::get_if<double>(&options.normalizer);
  const auto* tensor = std::get_if<at::Tensor>(&options.normalizer);
  TORCH_CHECK_VALUE(
      options.reduction == Reduction::sum || (value && *value == 1), "normalizer: goes with Reduction::sum");
  TORCH_CHECK_VALUE(
      !value || (*value > 0 && std::isfinite(*value)), "normalizer: must be finite and > 0, got ", value ? *value : 0);
  TORCH_CHECK_VALUE(!tensor || tensor->dim() == 0, "normalizer: a tensor must be 0-d, got shape ",
      tensor ? tensor->sizes() : at::IntArrayRef());

  const at::ScalarType accumulation = inputs.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const bool as_they_are = !dense || targets.scalar_type() == inputs.scalar_type() ||
                           targets.scalar_type() == at::kBool || targets.scalar_type() == at::kByte;
  std::optional<int64_t> ignore_index = options.ignore_index;
  const at::Tensor plain = as_they_are                                        ? targets
                           : at::isIntegralType(targets.scalar_type(), false) ? as_bytes(targets, ignore_index)
                                                                              : targets.to(accumulation);
  const bool off = options.alpha == -1 || options.class_alpha.defined();
  int64_t divisor = value ? kByValue : tensor ? kByTensor : kByPositives;
  const double divisor_value = value ? *value : 1;
  if (options.reduction == Reduction::mean) divisor = kByKept;
  return {{"targets", plain.contiguous()},
      {"weight",
          options.weight.defined() ? c10::IValue(plain_weight(options.weight, inputs, accumulation)) : c10::IValue()},
      {"alpha", options.class_alpha.defined() ? c10::IValue(options.class_alpha.to(accumulation).contiguous())
                                              : c10::IValue()},
      {"normalizer", tensor ? c10::IValue(tensor->to(accumulation)) : c10::IValue()},
      // As in focal_ext/_options.py: alpha of positives, of negatives, the divisor's value; then the loss's own: gamma,
      // label smoothing, modulator_gradient.
      {"numbers", c10::List<double>({off ? 1.0 : options.alpha, off ? 1.0 : 1 - options.alpha, divisor_value,
                      options.gamma, 0.0, 1.0})},
      {"ignore_index", ignore_index}, {"divisor", divisor}};
}

}  // namespace detail

// Sigmoid focal loss of logits [..., C] and class ids [...] or dense targets [..., C], as focal_ext.sigmoid_focal_loss
// in Python. A class id out of range makes loss and gradient of its row NaN. Throws c10::Error for a wrong shape, dtype
// or value.
inline at::Tensor sigmoid_focal_loss(
    const at::Tensor& inputs, const at::Tensor& targets, const SigmoidFocalLossOptions& options = {}) {
  const detail::Named named = detail::arguments(inputs, targets, options);
  const bool reduced = options.reduction != Reduction::none;
  if (!inputs.requires_grad() || !at::GradMode::is_enabled())
    return detail::call(reduced ? "loss" : "loss_map", detail::with(named, "inputs", inputs))[0].toTensor();
  if (reduced && inputs.scalar_type() != at::kHalf) return detail::OnePass::apply(inputs, named);
  return detail::Recompute::apply(inputs, named, reduced);
}

}  // namespace focal_ext

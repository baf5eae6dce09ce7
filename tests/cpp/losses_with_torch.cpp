// Owns: <focal_ext/torch.h> against the textbook formula in float64, loss and gradient, and its errors.
// Must not know: focal_ext's formulas.
#include <focal_ext/torch.h>
#include <torch/torch.h>

#include <cstdio>

using at::Tensor;
using focal_ext::Reduction;
using focal_ext::SigmoidFocalLossOptions;

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (!holds) ++failures, std::printf("FAILED: %s\n", what);
}

// -alpha_t (1 - p_t)^gamma log(p_t) of Lin et al. 2017 as torchvision writes it, with float64's digits to spare.
Tensor textbook(const Tensor& x, const Tensor& t, const Tensor& alpha, double gamma) {
  const Tensor p = at::sigmoid(x), ce = -t * at::log_sigmoid(x) - (1 - t) * at::log_sigmoid(-x);
  return (alpha * t + (1 - alpha) * (1 - t)) * (p * (1 - t) + (1 - p) * t).pow(gamma) * ce;
}

struct Row {
  const char* name;
  SigmoidFocalLossOptions options = {};
  bool dense = false;
  at::ScalarType dtype = at::kFloat;
};

Tensor rows_of_zero_and_one(const Tensor& ids, int64_t classes) {
  return ids.unsqueeze(-1).eq(at::arange(classes)).to(at::kDouble);  // -1 and C match no class
}

void check(const Row& row) {
  const auto& options = row.options;
  const int64_t rows = 137, classes = 19;
  at::manual_seed(0);
  const Tensor ids = at::randint(-1, classes + 1, {rows});
  const Tensor ignored = at::rand({rows}) < 0.2;
  const Tensor soft = at::rand({rows, classes}).to(row.dtype);
  const Tensor targets = row.dense ? soft : ids.masked_fill(ignored, -2);
  const Tensor inputs = (at::randn({rows, classes}) * 4).to(row.dtype).requires_grad_();

  const Tensor x = inputs.detach().to(at::kDouble).requires_grad_();
  const Tensor kept =
      row.dense ? at::ones({rows, 1}, at::kDouble) : ignored.logical_not().unsqueeze(-1).to(at::kDouble);
  const Tensor alpha =
      options.class_alpha.defined() ? options.class_alpha.to(at::kDouble) : at::full({}, options.alpha, at::kDouble);
  Tensor want =
      textbook(x, row.dense ? soft.to(at::kDouble) : rows_of_zero_and_one(ids, classes), alpha, options.gamma) * kept;
  if (options.weight.defined()) want = want * options.weight.to(at::kDouble);
  if (options.reduction != Reduction::none) want = want.sum();
  if (options.reduction == Reduction::mean)
    want = want / (row.dense ? at::full({}, rows * classes) : kept.sum() * classes);
  if (const auto* value = std::get_if<double>(&options.normalizer)) want = want / *value;
  if (const auto* value = std::get_if<Tensor>(&options.normalizer)) want = want / value->to(at::kDouble);
  if (std::holds_alternative<focal_ext::Positives>(options.normalizer))
    want = want / (targets.ge(0) & targets.lt(classes)).sum();

  const Tensor loss = focal_ext::sigmoid_focal_loss(inputs, targets, options);
  const Tensor upstream = at::full_like(loss, 0.5);  // exact in every dtype
  loss.backward(upstream, /*retain_graph=*/true);
  want.backward(upstream.to(at::kDouble));
  const Tensor gradient = inputs.grad().clone();
  // What is tested is which numbers reach the op; its last digits are tests/test_values.py's. Hence one tolerance for
  // all elements of a result: 6e-6 of the largest, 50 roundings of float32, more than a sum or a cancelling soft target
  // needs; half types round once more.
  const double relative = row.dtype == at::kDouble  ? 1e-13
                          : row.dtype == at::kFloat ? 6e-6
                          : row.dtype == at::kHalf  ? 1e-3
                                                    : 8e-3;
  const auto agree = [&](const Tensor& got, const Tensor& right) {
    return got.to(at::kDouble).allclose(right, 0, relative * right.abs().max().item<double>());
  };
  expect(agree(loss, want), row.name);
  expect(agree(gradient, x.grad()), row.name);

  loss.backward(upstream);  // a kept graph gives the same again
  expect(at::equal(inputs.grad(), gradient * 2), row.name);
  const at::NoGradGuard no_grad;
  expect(at::equal(focal_ext::sigmoid_focal_loss(inputs, targets, options), loss.detach()) &&
             !focal_ext::sigmoid_focal_loss(inputs, targets, options).requires_grad(),
      row.name);
}

template <class F>
void expect_error(const char* part, F&& f) {
  try {
    f();
    expect(false, part);
  } catch (const c10::Error& error) {
    expect(std::string(error.what()).find(part) != std::string::npos, part);
  }
}

void check_errors() {
  const Tensor x = at::randn({4, 3}).requires_grad_(), ids = at::tensor({0, -1, 2, 3});
  const auto call = [&](SigmoidFocalLossOptions options) { return focal_ext::sigmoid_focal_loss(x, ids, options); };
  expect_error("gamma: must be finite", [&] { call({.gamma = -1}); });
  expect_error("alpha: must be in [0, 1]", [&] { call({.alpha = 2}); });
  expect_error("normalizer: goes with", [&] { call({.reduction = Reduction::mean, .normalizer = 2.0}); });
  expect_error("normalizer: must be finite", [&] { call({.reduction = Reduction::sum, .normalizer = 0.0}); });
  expect_error(
      "normalizer: a tensor must be 0-d", [&] { call({.reduction = Reduction::sum, .normalizer = at::ones({1})}); });
  expect_error("targets: shape", [&] { focal_ext::sigmoid_focal_loss(x, at::zeros({5}, at::kLong)); });
  expect_error("inputs: logits must be", [&] { focal_ext::sigmoid_focal_loss(ids, ids); });
  expect_error("class_alpha: must hold one value", [&] { call({.class_alpha = at::rand({5})}); });
  expect_error("once differentiable", [&] {
    const Tensor loss = call({.reduction = Reduction::sum});
    torch::autograd::grad({loss}, {x}, {}, /*retain_graph=*/true, /*create_graph=*/true);
  });
  const Tensor loss = focal_ext::sigmoid_focal_loss(x, at::tensor({0, 99, 2, 3}), {.reduction = Reduction::sum});
  expect(loss.isnan().item<bool>(), "a class id out of range makes the loss NaN");
}

void check_masks() {
  at::manual_seed(1);
  const Tensor x = at::randn({64, 5}) * 3, ones = at::rand({64, 5}) < 0.3, there = at::rand({64, 5}) < 0.2;
  const Tensor mask = ones.to(at::kLong).masked_fill(there, 255), alpha = at::full({}, 0.25, at::kDouble);
  const Tensor each = textbook(x.to(at::kDouble), ones.to(at::kDouble), alpha, 2).masked_fill(there, 0),
               want = each.sum() / there.logical_not().sum();
  for (const Tensor& targets : {mask, mask.to(at::kInt), mask.to(at::kByte), mask.to(at::kFloat)}) {
    const Tensor loss = focal_ext::sigmoid_focal_loss(x, targets, {.reduction = Reduction::mean, .ignore_index = 255});
    expect(loss.to(at::kDouble).allclose(want, 1e-5), "the ignored elements of a mask count 0 and not in the mean");
  }
  for (const Tensor& targets : {mask, mask.to(at::kByte)})
    expect(at::equal(focal_ext::sigmoid_focal_loss(x, targets).isnan(), there), "integers other than 0 and 1 are NaN");
}

}  // namespace

int main() {
  const Row rows[] = {
      {"unreduced", {}},
      {"sum", {.reduction = Reduction::sum}},
      {"mean", {.reduction = Reduction::mean}},
      {"mean of dense targets", {.reduction = Reduction::mean}, true},
      {"sum of dense targets, gamma 1.5", {.gamma = 1.5, .reduction = Reduction::sum}, true},
      {"by positives", {.reduction = Reduction::sum, .normalizer = focal_ext::Positives{}}},
      {"by a number", {.reduction = Reduction::sum, .normalizer = 7.5}},
      {"by a tensor", {.reduction = Reduction::sum, .normalizer = at::scalar_tensor(7.5)}},
      {"weight per row", {.reduction = Reduction::sum, .weight = at::rand({137, 1})}},
      {"weight per class, unreduced", {.weight = at::rand({19})}},
      {"alpha per class", {.reduction = Reduction::sum, .class_alpha = at::rand({19})}},
      {"float64", {.reduction = Reduction::sum}, false, at::kDouble},
      {"bfloat16, unreduced", {}, false, at::kBFloat16},
      {"float16", {.reduction = Reduction::sum}, false, at::kHalf},
  };
  for (const Row& row : rows) check(row);
  check_errors();
  check_masks();
  std::printf("focal_ext %s: %zu rows, %d failures\n", focal_ext_version(), std::size(rows), failures);
  return failures != 0;
}

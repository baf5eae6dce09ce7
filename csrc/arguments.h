// Owns: the step from the tensors and numbers of an op to the plain description of its call, and what of them could
// corrupt memory.
// Must not know: formulas, loops, kernels, which op asks. All else is checked in Python, where an error can be a
// ValueError.
#pragma once
#include "losses/list.h"
#include "tensors.h"

namespace focal_ext {
namespace {  // torch's stable types are hidden, and so is what holds them

using Tensors = std::vector<Tensor>;

// What every op is given beside the logits; owns what the plain description points to.
struct Arguments {
  Tensor targets;
  OptionalTensor scores, weight, alpha, normalizer;
  int64_t loss;
  std::vector<double> numbers;  // alpha of positives, alpha of negatives, the divisor's value, then the loss's own
  std::optional<int64_t> ignore_index;
  int64_t divisor, classes, batch_dims;

  // All but logits, targets and weight, for logits of this kind.
  Problem problem(const Tensor& like, int64_t rows, int64_t columns) const {
    Problem p{};
    p.scalar = scalar_of(like);
    p.rows = rows;
    p.classes = columns;
    STD_TORCH_CHECK(loss >= 0 && loss < kLosses, "loss: unknown");
    constexpr size_t kShared = 3;
    const size_t count = kShared + size_t(facts_of(Loss(loss)).numbers);
    STD_TORCH_CHECK(numbers.size() == count, "numbers: must be ", count, " for this loss, got ", numbers.size());
    p.alpha_positive = numbers[0];
    p.alpha_negative = numbers[1];
    p.divisor_value = numbers[2];
    p.loss_parameters = parameters_of(Loss(loss), numbers.data() + kShared);
    check_numbers(p.loss_parameters, p.alpha_positive, p.alpha_negative, p.divisor_value);
    p.has_ignore_index = ignore_index.has_value();
    p.ignore_index = ignore_index.value_or(0);
    p.scores = checked_data(scores, like, rows, "scores");
    p.alpha = checked_data(alpha, like, columns, "alpha");
    p.divisor = Divisor(divisor);
    STD_TORCH_CHECK(batch_dims >= 0 && batch_dims < like.dim(), "batch_dims: must leave the dimension of the classes");
    p.groups = numel_of_batch(like);
    p.divisor_per_group = normalizer && normalizer->dim() > 0;
    p.divisor_tensor = checked_data(normalizer, like, p.divisor_per_group ? p.groups : 1, "normalizer");
    STD_TORCH_CHECK(
        divisor >= 0 && divisor <= int64_t(Divisor::positives) && (p.divisor != Divisor::tensor || normalizer),
        "divisor: does not fit the other arguments");
    return p;
  }

  int64_t numel_of_batch(const Tensor& like) const {
    int64_t numel = 1;
    for (int64_t d = 0; d < batch_dims; ++d) numel *= like.size(d);
    return numel;
  }
  Tensor new_loss(const Tensor& like) const {
    return empty(like, batch_dims, like.sizes().data(), accumulation_type(like));
  }

  // An upstream factor, or one for each group: of the accumulation dtype.
  void set_factor(Problem& p, const Tensor& like, const Tensor& grad_output) const {
    p.grad_output_per_group = grad_output.dim() > 0;
    p.grad_output = checked_data(grad_output, like, p.grad_output_per_group ? p.groups : 1, "grad_output");
  }

  // That what is written is nowhere what is read.
  void check_written(const Bytes& written, const Tensor& grad_output, const OptionalTensor& loss_result) const {
    check_apart(written, targets, "targets");
    check_apart(written, scores, "scores");
    check_apart(written, weight, "weight");
    check_apart(written, alpha, "alpha");
    check_apart(written, normalizer, "normalizer");
    check_apart(written, grad_output, "grad_output");
    check_apart(written, loss_result, "loss");
  }
};

// Logits [..., classes] in rows.
class Rows {
 public:
  Rows(Tensor inputs, Arguments given) : given_(std::move(given)), inputs_(as_contiguous(inputs, "inputs")) {
    given_.targets = as_contiguous(given_.targets, "targets");
    const Tensor& targets = given_.targets;
    int64_t rows = 1;
    for (int64_t d = 0; d + 1 < inputs_.dim(); ++d) rows *= inputs_.size(d);
    plain = given_.problem(inputs_, rows, inputs_.size(-1));
    plain.inputs = inputs_.const_data_ptr();
    plain.target = targets.dim() == inputs_.dim() ? dense_target(inputs_, targets) : id_target(targets);
    STD_TORCH_CHECK(targets.numel() == (is_dense(plain.target) ? numel(plain) : rows) && on_device_of(targets, inputs_),
        "targets: must be on the device of inputs and hold one id a row or one value a logit");
    plain.targets = targets.const_data_ptr();
    STD_TORCH_CHECK(plain.divisor < Divisor::positives || has_row_losses(plain) || !is_dense(plain.target),
        "divisor: does not fit the other arguments");
    if (given_.weight) set_weight(*given_.weight);
  }

  const Tensor& like() const { return inputs_; }
  Problem& problem() { return plain; }
  void write_gradient(Tensor& to) { plain.gradient = to.mutable_data_ptr(); }
  Tensor new_gradient() const { return empty_logits(inputs_); }
  Tensor new_loss() const { return given_.new_loss(inputs_); }

  Tensor new_loss_map() {
    Tensor result = has_row_losses(plain)
                        ? empty(inputs_, inputs_.dim() - 1, inputs_.sizes().data(), inputs_.scalar_type())
                        : empty_logits(inputs_);
    plain.loss_map = result.mutable_data_ptr();
    return result;
  }

  // A factor, or without batch_dims a map (the unreduced loss's shape, the logits' dtype).
  void set_upstream(const Tensor& grad_output) {
    upstream_ = as_contiguous(grad_output, "grad_output");
    if (given_.batch_dims > 0 || grad_output.dim() == 0) return given_.set_factor(plain, inputs_, *upstream_);
    STD_TORCH_CHECK(on_device_of(*upstream_, inputs_) &&
                        upstream_->numel() == (has_row_losses(plain) ? plain.rows : numel(plain)) &&
                        upstream_->scalar_type() == inputs_.scalar_type(),
        "grad_output: must be 0-d of the accumulation dtype, or of the shape of the unreduced loss and the dtype of "
        "inputs, and on their device");
    plain.grad_output = upstream_->const_data_ptr();
    plain.grad_output_per_element = true;
  }

  static void check_written(
      const Tensor& inputs, const Arguments& given, const Tensor& grad_output, const OptionalTensor& loss) {
    STD_TORCH_CHECK(inputs.is_contiguous(), "inputs: must be contiguous to be overwritten");
    check_allocated(inputs, "inputs");
    given.check_written(bytes_of(inputs), grad_output, loss);
  }

  Problem plain;

 private:
  void set_weight(const Tensor& weight) {
    STD_TORCH_CHECK(weight.dim() == 2, "weight: must be [rows or 1, classes or 1]");
    const int64_t rows = weight.size(0), classes = weight.size(1);
    STD_TORCH_CHECK((rows == 1 || rows == plain.rows) && (classes == 1 || classes == plain.classes),
        "weight: must be [rows or 1, classes or 1]");
    plain.weight = checked_data(weight, inputs_, rows * classes, "weight");
    plain.weight_row_stride = rows == 1 ? 0 : classes;
    plain.weight_class_stride = classes == 1 ? 0 : 1;
  }

  Arguments given_;
  Tensor inputs_;
  OptionalTensor upstream_;
};

inline bool is_channels_last(const Tensor& t) {
  const int64_t expected[4] = {t.size(1) * t.size(2) * t.size(3), 1, t.size(3) * t.size(1), t.size(1)};
  for (int64_t d = 0; d < 4; ++d)
    if (t.size(d) != 1 && t.stride(d) != expected[d]) return false;
  return true;
}

// Logits [images, anchors * classes, height, width] of the levels of a feature pyramid, in planes or with channels
// last; planes may have any number of spatial dimensions.
class Levels {
 public:
  Levels(Tensors levels, Arguments given) : given_(std::move(given)), levels_(std::move(levels)) {
    const int64_t classes = given_.classes;
    STD_TORCH_CHECK(!levels_.empty() && classes > 0, "levels: at least one, with at least one class");
    const Tensor& first = levels_[0];
    STD_TORCH_CHECK(first.dim() >= 3, "levels: must be [images, anchors * classes, height, width]");
    plain.images = first.size(0);
    plain.anchors = first.size(1) / classes;
    int64_t anchors = 0;
    for (const Tensor& level : levels_) {
      STD_TORCH_CHECK(level.dim() == first.dim() && level.size(0) == plain.images &&
                          level.size(1) == plain.anchors * classes && level.scalar_type() == first.scalar_type() &&
                          on_device_of(level, first),
          "levels: must be [images, anchors * classes, height, width] of one dtype on one device");
      const bool planes = level.is_contiguous();
      STD_TORCH_CHECK(
          planes || (level.dim() == 4 && is_channels_last(level)), "levels: must be contiguous or channels_last");
      check_allocated(level, "levels");
      int64_t positions = 1;
      for (int64_t d = 2; d < level.dim(); ++d) positions *= level.size(d);
      each_.push_back({level.const_data_ptr(), nullptr, positions, !planes});
      anchors += each_.back().positions * plain.anchors;
    }
    plain.levels = each_.data();
    plain.level_count = int64_t(each_.size());
    Problem& p = plain.problem = given_.problem(first, plain.images * anchors, classes);
    STD_TORCH_CHECK(given_.batch_dims <= 1, "batch_dims: must be 0 or 1 for levels");
    set_targets(first);
    p.weight_class_stride = given_.weight && given_.weight->dim() == 1;
    plain.weight_per_image =
        given_.weight && !p.weight_class_stride && given_.weight->numel() == plain.images && plain.images != p.rows;
    p.weight = checked_data(given_.weight, first,
        p.weight_class_stride    ? classes
        : plain.weight_per_image ? plain.images
                                 : p.rows,
        "weight");
  }

  const Tensor& like() const { return levels_[0]; }
  Problem& problem() { return plain.problem; }

  void write_gradient(Tensors& to) {
    for (size_t i = 0; i < to.size(); ++i) each_[i].gradient = to[i].mutable_data_ptr();
  }

  // In each level's own memory format.
  Tensors new_gradient() const {
    Tensors result;
    for (const Tensor& level : levels_)
      result.push_back(with_huge_pages(
          empty_strided(level, level.dim(), level.sizes().data(), level.strides().data(), level.scalar_type())));
    return result;
  }

  Tensor new_loss() const { return given_.new_loss(like()); }

  // Losses of rows have [images, anchors of all levels]; losses of logits are like the only level, which is in planes.
  Tensor new_loss_map() {
    const int64_t sizes[2] = {plain.images, plain.images ? plain.problem.rows / plain.images : 0};
    if (!has_row_losses(plain.problem)) check_one_of_planes();
    Tensor result =
        has_row_losses(plain.problem) ? empty(like(), 2, sizes, like().scalar_type()) : empty_logits(like());
    plain.problem.loss_map = result.mutable_data_ptr();
    return result;
  }

  // An upstream factor, or one for each of what new_loss_map() has, of the logits' dtype.
  void set_upstream(const Tensor& grad_output) {
    Problem& p = plain.problem;
    if (given_.batch_dims > 0 || grad_output.dim() == 0) return given_.set_factor(p, like(), grad_output);
    if (!has_row_losses(p)) check_one_of_planes();
    upstream_ = as_contiguous(grad_output, "grad_output");
    STD_TORCH_CHECK(upstream_->numel() == (has_row_losses(p) ? p.rows : numel(p)) &&
                        upstream_->scalar_type() == like().scalar_type() && on_device_of(*upstream_, like()),
        "grad_output: must be a factor, or of the shape of the unreduced loss and the dtype of the levels, on their "
        "device");
    p.grad_output = upstream_->const_data_ptr();
    p.grad_output_per_element = true;
  }

  // Nor may a level be another's memory.
  static void check_written(
      const Tensors& levels, const Arguments& given, const Tensor& grad_output, const OptionalTensor& loss) {
    for (size_t i = 0; i < levels.size(); ++i) {
      check_allocated(levels[i], "levels");
      const Bytes written = bytes_of(levels[i]);
      for (size_t j = 0; j < i; ++j) {
        const Bytes other = bytes_of(levels[j]);
        STD_TORCH_CHECK(
            other.end <= written.begin || written.end <= other.begin, "levels: two share memory; clone one of them");
      }
      given.check_written(written, grad_output, loss);
    }
  }

  Pyramid plain{};

 private:
  void check_one_of_planes() const {
    STD_TORCH_CHECK(levels_.size() == 1 && !each_[0].channels_last,
        "levels: an unreduced loss of logits is that of one level in planes");
  }

  // Class ids, or of a softmax loss over one level dense targets in its own memory format.
  void set_targets(const Tensor& first) {
    Problem& p = plain.problem;
    const bool dense = given_.targets.dim() == first.dim();
    if (dense) check_allocated(given_.targets, "targets");
    else given_.targets = as_contiguous(given_.targets, "targets");
    const Tensor& targets = given_.targets;
    p.target = dense ? dense_target(first, targets) : id_target(targets);
    STD_TORCH_CHECK(targets.numel() == (dense ? numel(p) : p.rows) && on_device_of(targets, first),
        "targets: must hold one class id an anchor, on the device of the levels");
    STD_TORCH_CHECK(!dense || (has_row_losses(p) && levels_.size() == 1 &&
                                  (each_[0].channels_last ? is_channels_last(targets) : targets.is_contiguous())),
        "targets: dense ones must lie as the only level does, of a loss of rows");
    p.targets = targets.const_data_ptr();
  }

  Arguments given_;
  Tensors levels_;
  OptionalTensor upstream_;
  std::vector<Level> each_;
};

}  // namespace
}  // namespace focal_ext

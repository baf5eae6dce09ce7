// Owns: a Problem and a Pyramid from named values, as ops.py makes them.
// Must not know: how the names and values got here.
#pragma once
#include <vector>

#include "losses/list.h"
#include "problem.h"

namespace focal_ext {

// Fields has get<T>(name), and address(name), null for what is missing. Names are those of Problem's members.
template <class Fields>
Problem problem_of(const Fields& f) {
  const auto result = [&](const char* name) { return const_cast<void*>(f.address(name)); };
  const auto number = [&](const char* name) { return f.template get<double>(name); };
  const auto whole = [&](const char* name) { return f.template get<int64_t>(name); };
  Problem p = {};
  p.inputs = f.address("inputs");
  p.scalar = Scalar(whole("scalar"));
  p.rows = whole("rows");
  p.classes = whole("classes");
  p.targets = f.address("targets");
  p.target = Target(whole("target"));
  p.has_ignore_index = whole("has_ignore_index");
  p.ignore_index = whole("ignore_index");
  p.scores = f.address("scores");
  const double numbers[] = {number("parameter_0"), number("parameter_1"), number("parameter_2"), number("parameter_3")};
  p.loss_parameters = parameters_of(Loss(whole("loss_id")), numbers);
  p.alpha_positive = number("alpha_positive");
  p.alpha_negative = number("alpha_negative");
  p.alpha = f.address("alpha");
  p.weight = f.address("weight");
  p.weight_row_stride = whole("weight_row_stride");
  p.weight_class_stride = whole("weight_class_stride");
  p.divisor = Divisor(whole("divisor"));
  p.divisor_value = number("divisor_value");
  p.divisor_tensor = f.address("divisor_tensor");
  p.groups = whole("groups");
  p.divisor_per_group = whole("divisor_per_group");
  p.grad_output_per_group = whole("grad_output_per_group");
  p.grad_output = f.address("grad_output");
  p.grad_output_per_element = whole("grad_output_per_element");
  p.loss = result("loss");
  p.loss_map = result("loss_map");
  p.gradient = result("gradient");
  return p;
}

template <class Fields>
std::vector<Level> levels_of(const std::vector<Fields>& levels) {
  std::vector<Level> plain;
  for (const Fields& f : levels)
    plain.push_back({f.address("inputs"), const_cast<void*>(f.address("gradient")),
        f.template get<int64_t>("positions"), bool(f.template get<int64_t>("channels_last"))});
  return plain;
}

// `fields` as of a Problem, and those of Pyramid. The levels must outlive it.
template <class Fields>
Pyramid pyramid_of(const Fields& fields, const std::vector<Level>& levels) {
  return {problem_of(fields), bool(fields.template get<int64_t>("weight_per_image")),
      fields.template get<int64_t>("images"), fields.template get<int64_t>("anchors"), levels.data(),
      int64_t(levels.size())};
}

}  // namespace focal_ext

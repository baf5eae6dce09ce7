// Owns: what the loss and the derivative of one element are multiplied by: alpha, weight, the upstream gradient.
// Must not know: formulas, how elements lie in rows or planes, threads, tensors, and the standard library (see
// storage.h).
#pragma once
#include "block.h"
#include "kernels.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// What the derivatives of a block are multiplied by.
template <class acc_t>
struct Upstream {
  acc_t buffer[kBlock];
  const acc_t* map;
  acc_t scale;
  Upstream(const Problem& p, double scale, int64_t begin, int64_t n)
      : map(p.grad_output_per_element ? load_block(p.grad_output, p.scalar, begin, n, buffer) : nullptr),
        scale(acc_t(scale)) {}
  acc_t operator[](int64_t i) const { return map ? scale * map[i] : scale; }
};

// Of no loss in particular, so that losses share its loops: the library is a megabyte smaller.
template <class acc_t, class Factor>
class Factors {
 public:
  Factors(const Problem& problem, const Common& common)
      : p_(problem), common_(common), scale_(common.scale), alpha_(static_cast<const acc_t*>(problem.alpha)),
        weight_(static_cast<const acc_t*>(problem.weight)), uniform_(is_uniform(problem)) {}

 protected:
  acc_t weight_at(int64_t row, int64_t c) const {
    return weight_ ? weight_[row * p_.weight_row_stride + c * p_.weight_class_stride] : acc_t(1);
  }

  // An element of class c, which has the logit x, the target t, the weight and the upstream factor, as entry i of the
  // block. `named`: of the class that a class id names.
  void fill(
      Block<acc_t>& b, int64_t i, int64_t c, acc_t x, acc_t t, acc_t weight, acc_t upstream, bool named = false) const {
    const acc_t of_one = alpha_ ? alpha_[c] : acc_t(p_.alpha_positive),
                of_zero = alpha_ ? acc_t(1) - alpha_[c] : acc_t(p_.alpha_negative);
    const acc_t a = named ? Factor::of_named(t, of_one, of_zero) : Factor::of(t, of_one, of_zero);
    b.x[i] = a == 0 ? finite(x) : x;
    b.t[i] = t;
    b.value[i] = a * weight;
    b.gradient[i] = b.value[i] * upstream;
  }

  // Calls f(c -> weight of class c), of a kind for each layout of weights: a loop with a stride in it would load one
  // weight after the other.
  template <class F>
  void with_weights(int64_t row, F f) const {
    const acc_t* const weights = weight_ + (weight_ ? row * p_.weight_row_stride : 0);
    if (weight_ && p_.weight_class_stride) return f([weights](int64_t c) { return weights[c]; });
    const acc_t weight = weight_ ? *weights : acc_t(1);
    f([weight](int64_t) { return weight; });
  }

  // Elements whose factors differ by the target alone.
  void fill_alike(Block<acc_t>& b, const acc_t* x, const acc_t* t, int64_t n) const {
    const acc_t of_one = acc_t(p_.alpha_positive), of_zero = acc_t(p_.alpha_negative), scale = acc_t(scale_);
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const acc_t a = Factor::of(t[i], of_one, of_zero);
      b.x[i] = a == 0 ? finite(x[i]) : x[i];
      b.t[i] = t[i];
      b.value[i] = a;
      b.gradient[i] = a * scale;
    }
  }

  FOCAL_EXT_ONE_COPY void add_positive(
      Specials<acc_t>& s, int64_t at, int64_t row, int64_t c, acc_t x, acc_t upstream) const {
    const acc_t score = p_.scores ? static_cast<const acc_t*>(p_.scores)[row] : acc_t(1);
    fill(s.positives, s.count, c, x, score, weight_at(row, c), upstream, true);
    s.at[s.count++] = at;
  }

  const Problem& p_;
  const Common& common_;
  const double scale_;
  const acc_t* const alpha_;
  const acc_t* const weight_;
  const bool uniform_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

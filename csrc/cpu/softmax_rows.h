// Owns: what the softmax loops do with one row or a run of logits: largest logit, exponentials, sums, the factors of a
// row.
// Must not know: formulas, targets, and the standard library (see storage.h). Compiled once per instruction set.
#pragma once
#include "../losses/softmax_focal.h"
#include "block.h"
#include "kernels.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

constexpr int64_t kExponentials = 2048;  // with their logits and gradients they stay in the first-level cache
constexpr int64_t kRowLanes = 16;        // partial results per run, the same at every vector width

// Folds lanes in halves: the order is the same at every vector width, and no lane waits for another.
template <class acc_t, class Fold>
acc_t fold(acc_t* lanes, Fold f) {
  for (int64_t i = 0; i < 8; ++i) lanes[i] = f(lanes[i], lanes[i + 8]);
  for (int64_t i = 0; i < 4; ++i) lanes[i] = f(lanes[i], lanes[i + 4]);
  for (int64_t i = 0; i < 2; ++i) lanes[i] = f(lanes[i], lanes[i + 2]);
  return f(lanes[0], lanes[1]);
}

// Folds get(0) ... get(n - 1) into `start`.
template <class acc_t, class Get, class Fold>
FOCAL_EXT_INLINE acc_t fold_all(int64_t n, acc_t start, Get get, Fold f) {
  if (n < kRowLanes) {
    for (int64_t i = 0; i < n; ++i) start = f(start, get(i));
    return start;
  }
  acc_t lanes[kRowLanes];
  for (int64_t lane = 0; lane < kRowLanes; ++lane) lanes[lane] = start;
  int64_t i = 0;
  for (; i + kRowLanes <= n; i += kRowLanes)
#pragma omp simd
    for (int64_t lane = 0; lane < kRowLanes; ++lane) lanes[lane] = f(lanes[lane], get(i + lane));
  for (int64_t lane = 0; i < n; ++i, ++lane) lanes[lane] = f(lanes[lane], get(i));
  return fold(lanes, f);
}

// In acc_t over 512 at a time, in double beyond.
template <class acc_t, class Get>
FOCAL_EXT_INLINE double sum_of(int64_t n, Get get) {
  double total = 0;
  for (int64_t at = 0; at < n; at += 512) {
    const int64_t part = n - at < 512 ? n - at : 512;
    total += double(fold_all<acc_t>(
        part, acc_t(0), [at, get](int64_t i) { return get(at + i); }, [](acc_t a, acc_t b) { return a + b; }));
  }
  return total;
}

template <class acc_t>
struct row_math {
  using type = HostFloat;
};
template <>
struct row_math<double> {
  using type = Double;
};

template <class acc_t, class F>
void with_gamma(double gamma, F f) {
  // fp64 is the accurate path, not the fast one: one instance serves every gamma.
  if constexpr (sizeof(acc_t) == 8) f(AnyModulator(Exponent(gamma)));
  else with_modulator(gamma, f);
}

// Rows with class ids, each of a few numbers: what the formula takes, and what it makes of them.
template <class acc_t>
struct RowTerms {
  // m, e_y, the sum of the other e, m - x_y
  acc_t top[kMaxStrip], own[kMaxStrip], others[kMaxStrip], distance[kMaxStrip], mean_distance[kMaxStrip];
  acc_t value_factor[kMaxStrip], gradient_factor[kMaxStrip];
  acc_t value[kMaxStrip], of_others[kMaxStrip], shift[kMaxStrip], of_own[kMaxStrip];
};

template <class acc_t>
FOCAL_EXT_ONE_COPY void compute_terms(RowTerms<acc_t>& t, int64_t rows, const Problem& p) {
  using Math = typename row_math<acc_t>::type;
  const acc_t smoothing = acc_t(p.loss_parameters.numbers[1]), kept = acc_t(1 - p.loss_parameters.numbers[1]),
              classes = acc_t(p.classes);
  // By pointers: what lies in arrays of a struct or behind a closure is not vectorised.
  with_gamma<acc_t>(p.loss_parameters.numbers[0],
      [=, own = t.own, others = t.others, distance = t.distance, mean = t.mean_distance, value = t.value,
          of_others = t.of_others, shift = t.shift, of_own = t.of_own](auto modulator) {
    const auto put = [=](int64_t r, SoftmaxRow<acc_t> row) FOCAL_EXT_INLINE_LAMBDA {
      value[r] = row.value, of_others[r] = row.others, shift[r] = row.shift, of_own[r] = row.own;
    };
    if (smoothing == 0) {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) put(r, softmax_focal_row<Math>(own[r], others[r], distance[r], modulator));
    } else {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r)
        put(r, smoothed_softmax_focal_row<Math>(
                   own[r], others[r], distance[r], mean[r], smoothing, kept, classes, modulator));
    }
  });
}

template <class scalar_t>
class SoftmaxRows {
 protected:
  using acc_t = typename accumulate<scalar_t>::type;
  using Math = typename row_math<acc_t>::type;

  SoftmaxRows(const Problem& problem, double scale)
      : p_(problem), scale_(acc_t(scale)), classes_(problem.classes),
        smoothing_(acc_t(problem.loss_parameters.numbers[1])) {}

  const scalar_t* row_at(int64_t row) const { return static_cast<const scalar_t*>(p_.inputs) + row * classes_; }
  acc_t alpha(int64_t c) const { return p_.alpha ? static_cast<const acc_t*>(p_.alpha)[c] : acc_t(p_.alpha_positive); }
  acc_t weight(int64_t row) const {
    return p_.weight ? static_cast<const acc_t*>(p_.weight)[row * p_.weight_row_stride] : acc_t(1);
  }

  // What the derivative of a row's loss is multiplied by.
  acc_t upstream(int64_t row) const {
    return p_.grad_output_per_element ? scale_ * load(static_cast<const scalar_t*>(p_.grad_output)[row]) : scale_;
  }

  // A coefficient of 0 counts 0 also where the cross entropy is infinite; NaN stays.
  static acc_t finite_if(bool no_coefficient, acc_t distance) {
    return no_coefficient ? almost_finite(distance) : distance;
  }

  // The largest logit, NaN left out.
  static acc_t largest(const scalar_t* x, int64_t n) {
    return fold_all<acc_t>(n, acc_t(-__builtin_inf()), [x](int64_t i) { return acc_t(load(x[i])); },
        [](acc_t a, acc_t b) { return b > a ? b : a; });
  }

  // 1, or NaN where a row has no limit: several logits of +inf, nothing but -inf, or NaN.
  static acc_t defined(const scalar_t* x, int64_t n, acc_t top) {
    if (Math::abs(top) < acc_t(__builtin_inf())) return 1;
    int64_t not_below = 0;
    for (int64_t i = 0; i < n; ++i) not_below += !(load(x[i]) < top);
    return not_below > 1 ? acc_t(__builtin_nan("")) : acc_t(1);
  }

  // The mean of top - x over a row; each term is divided, so that the sum cannot overflow.
  acc_t mean_distance(const scalar_t* x, acc_t top) const {
    const acc_t share = acc_t(1) / acc_t(classes_ > 0 ? classes_ : 1);
    return acc_t(
        sum_of<acc_t>(classes_, [=](int64_t i) { return load(x[i]) == top ? acc_t(0) : (top - load(x[i])) * share; }));
  }

  // e[i] = exp(x[i] - top[i]); `e` holds top before.
  static void exponentials(const scalar_t* x, acc_t* e, int64_t n) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) e[i] = exp_below<Math>(acc_t(load(x[i])), e[i]);
  }

  const Problem& p_;
  const acc_t scale_;
  const int64_t classes_;
  const acc_t smoothing_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

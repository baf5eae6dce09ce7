// Owns: the softmax loss of rows with dense targets, a row at a time. Compiled once per instruction set.
// Must not know: threads, tensors, and the standard library (see storage.h).
#pragma once
#include "softmax_rows.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The sum of terms without the largest of them, which is kept apart: no term is ever subtracted from a sum that it
// dominates.
template <class acc_t>
struct SumBesideLargest {
  acc_t largest = 0;
  int64_t at = 0;
  double rest = 0;

  // Terms of classes [c, c + n).
  void add(acc_t* terms, int64_t c, int64_t n) {
    int64_t place = 0;
    for (int64_t i = 1; i < n; ++i) place = terms[i] > terms[place] ? i : place;
    const acc_t candidate = terms[place];
    terms[place] = 0;
    rest += sum_of<acc_t>(n, [terms](int64_t i) { return terms[i]; });
    terms[place] = candidate;
    if (c == 0 || candidate > largest) rest += double(largest), largest = candidate, at = c + place;
    else rest += double(candidate);
  }
  acc_t all() const { return acc_t(rest + double(largest)); }
};

template <class scalar_t>
class DenseRows : SoftmaxRows<scalar_t> {
  using Base = SoftmaxRows<scalar_t>;
  using typename Base::acc_t;
  using typename Base::Math;
  using Base::classes_;
  using Base::p_;

  // A part of a row, at most kExponentials classes.
  struct Part {
    acc_t e[kExponentials], coefficient[kExponentials], distance[kExponentials];
    // value and slope times the coefficient
    acc_t value[kExponentials], slope[kExponentials], p[kExponentials], u[kExponentials];
  };
  struct Sums {
    acc_t top;
    SumBesideLargest<acc_t> e, slope;
  };

 public:
  DenseRows(const Problem& problem, const Common& common) : Base(problem, common.scale), common_(common) {}

  double run(int64_t first, int64_t last) const {
    double total = 0;
    Part part;
    for (int64_t row = first; row < last; ++row) {
      const int found = with_dense(p_, [&](const auto* t) { return unusual_of(t + row * classes_); });
      if (found & 1) common_.tell_ignored();
      total += double(found == 0 ? one_row(part, row) : constant(row, found & 1 ? acc_t(0) : acc_t(__builtin_nan(""))));
    }
    return total;
  }

 private:
  // As unusual(), of a row.
  template <class target_t>
  int unusual_of(const target_t* t) const {
    const acc_t ignored = acc_t(ignored_target(p_));
    const bool integers = are_integers(p_.target);
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < classes_; ++i) {
      const acc_t own = acc_t(load(t[i]));
      found |= (own == ignored ? 1 : 0) | (integers && (own > 1 || own < 0) ? 2 : 0);
    }
    return found;
  }

  // A row that is not computed.
  acc_t constant(int64_t row, acc_t everywhere) const {
    if (p_.loss_map) store(static_cast<scalar_t*>(p_.loss_map)[row], everywhere);
    if (p_.gradient)
      for (int64_t c = 0; c < classes_; ++c) store(static_cast<scalar_t*>(p_.gradient)[row * classes_ + c], everywhere);
    return everywhere;
  }

  acc_t one_row(Part& part, int64_t row) const {
    const scalar_t* const x = this->row_at(row);
    Sums sums;
    sums.top = this->largest(x, classes_);
    each_part([&](int64_t c, int64_t n) {
      exponentials(part, sums, row, c, n);
      sums.e.add(part.e, c, n);
    });
    const bool in_parts = classes_ > kExponentials;
    double value = 0;
    each_part([&](int64_t c, int64_t n) {
      if (in_parts) exponentials(part, sums, row, c, n);
      terms(part, sums, row, c, n);
      value += sum_of<acc_t>(n, [&part](int64_t i) { return part.value[i]; });
      sums.slope.add(part.slope, c, n);
    });
    const acc_t factor = this->weight(row) * this->defined(x, classes_, sums.top);
    if (p_.loss_map) store(static_cast<scalar_t*>(p_.loss_map)[row], factor * acc_t(value));
    if (p_.gradient)
      each_part([&](int64_t c, int64_t n) {
        if (in_parts) exponentials(part, sums, row, c, n), terms(part, sums, row, c, n);
        put(part, sums, row, c, n, factor * this->upstream(row));
      });
    return factor * acc_t(value);
  }

  template <class F>
  void each_part(F f) const {
    for (int64_t c = 0; c < classes_; c += kExponentials)
      f(c, classes_ - c < kExponentials ? classes_ - c : kExponentials);
  }

  void exponentials(Part& part, const Sums& sums, int64_t row, int64_t c, int64_t n) const {
    const scalar_t* const x = this->row_at(row) + c;
    for (int64_t i = 0; i < n; ++i) part.e[i] = sums.top;
    Base::exponentials(x, part.e, n);
  }

  void terms(Part& part, const Sums& sums, int64_t row, int64_t c, int64_t n) const {
    const int64_t begin = row * classes_ + c;
    with_dense(p_, [&](const auto* t) { coefficients(part, t + begin, c, n); });
    const scalar_t* const x = this->row_at(row) + c;
    for (int64_t i = 0; i < n; ++i) {
      const acc_t own = load(x[i]);
      part.distance[i] = this->finite_if(part.coefficient[i] == 0, own == sums.top ? acc_t(0) : sums.top - own);
    }
    const acc_t tail = acc_t(sums.e.rest), sum = sums.e.all(), log_sum = log_of_sum<Math>(sum, tail);
    const int64_t top = sums.e.at - c;
    with_gamma<acc_t>(p_.loss_parameters.numbers[0], [&](auto modulator) {
      const auto term = [&part, sum, log_sum, modulator](int64_t i, acc_t others) FOCAL_EXT_INLINE_LAMBDA {
        const auto t = softmax_focal_term<Math>(part.e[i], others, sum, part.distance[i], log_sum, modulator);
        part.value[i] = part.coefficient[i] * t.value, part.slope[i] = part.coefficient[i] * t.slope, part.p[i] = t.p,
        part.u[i] = t.u;
      };
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) term(i, sum - part.e[i]);
      if (top >= 0 && top < n) term(top, tail);
    });
  }

  template <class target_t>
  void coefficients(Part& part, const target_t* t, int64_t c, int64_t n) const {
    for (int64_t i = 0; i < n; ++i) part.coefficient[i] = this->alpha(c + i) * acc_t(load(t[i]));
  }

  // df/dx_c = p_c (sum of the other slopes) - slope_c u_c
  void put(const Part& part, const Sums& sums, int64_t row, int64_t c, int64_t n, acc_t factor) const {
    scalar_t* const gradient = static_cast<scalar_t*>(p_.gradient) + row * classes_ + c;
    const acc_t all = sums.slope.all();
    const auto put_one = [&part, gradient, factor](int64_t i, acc_t others) FOCAL_EXT_INLINE_LAMBDA {
      store(gradient[i], factor * (part.p[i] * others - part.slope[i] * part.u[i]));
    };
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) put_one(i, all - part.slope[i]);
    const int64_t largest = sums.slope.at - c;
    if (largest >= 0 && largest < n) put_one(largest, acc_t(sums.slope.rest));
  }

  const Common& common_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

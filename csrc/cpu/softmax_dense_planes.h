// Owns: the softmax loss of dense targets in planes, a strip of positions at a time.
// Must not know: formulas, threads, tensors, and the standard library (see storage.h). Compiled once per instruction
// set.
#pragma once
#include "softmax_planes.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

template <class acc_t>
class DensePlanes : SoftmaxPlanes<acc_t> {
  using Base = SoftmaxPlanes<acc_t>;
  using typename Base::Class, typename Base::Math;
  using Base::classes_, Base::keeps_, Base::n_, Base::p_, Base::strip_, Base::width_;

 public:
  DensePlanes(const Problem& problem, const Strip& strip, const Common& common)
      : Base(problem, strip, common, kDenseStripLogits), common_(common) {}

  double run() const {
    Buffers b;
    Strip_ s;
    this->template begin<true>(s.top, s.top_at);
    for (int64_t c = 0; c < classes_; ++c) this->template read<true>(c, s.top, s.top_at, b.p);
    open(s);
    add_exponentials(s, b);
    for (int64_t c = 0; c < classes_; ++c) terms(s, b, c, true);
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i)
      s.value[i] = s.factor[i] * acc_t(s.values.total[i]), s.rest_of_slopes[i] = acc_t(s.slopes.total[i]);
    if (s.has_unread) this->replace(s.unread, s.constant, n_, s.value);
    if (p_.gradient) put_gradients(s, b);
    return this->finish(s.value);
  }

 private:
  // What of each logit is kept: its exponential, which its p replaces, and the slope and u of its term.
  struct Buffers {
    alignas(64) acc_t p[kDenseStripLogits], slope[kDenseStripLogits], u[kDenseStripLogits];
  };
  struct Strip_ {
    // the exponentials: without the largest, all, its logarithm
    alignas(64) acc_t top[kMaxStrip], rest[kMaxStrip], sum[kMaxStrip], log_sum[kMaxStrip];
    acc_t largest_slope[kMaxStrip], rest_of_slopes[kMaxStrip], value[kMaxStrip], factor[kMaxStrip], upstream[kMaxStrip],
        constant[kMaxStrip];
    Class top_at[kMaxStrip], slope_at[kMaxStrip];  // where the largest are
    StripSums<acc_t> values, slopes;
    bool unread[kMaxStrip], has_unread = false;
  };

  // Asks, while exponentials keep the processor busy, for what the other passes wait for: a class's gradient, and its
  // logits in the next strip, which is nearly always computed next.
  FOCAL_EXT_INLINE void prefetch(int64_t c) const {
    const int64_t next = strip_.first + n_, rest = strip_.positions - next;
    if (p_.gradient) Base::prefetch(p_.gradient, this->first_of(c), n_);
    Base::prefetch(p_.inputs, this->first_of(c) + n_, rest < n_ ? rest : n_);
  }

  // Targets of a class as acc_t.
  FOCAL_EXT_ONE_COPY void targets(int64_t c, acc_t* to) const {
    with_dense(p_, [&](const auto* t) { widen(t + this->first_of(c), n_, to); });
  }

  // Everything about the rows that needs no exponential.
  FOCAL_EXT_ONE_COPY void open(Strip_& s) const {
    const acc_t ignored = acc_t(ignored_target(p_));
    const bool integers = are_integers(p_.target);
    int32_t is_ignored[kMaxStrip] = {}, is_bad[kMaxStrip] = {}, found = 0;
    acc_t t[kMaxStrip];
    for (int64_t c = 0; (integers || ignored == ignored) && c < classes_; ++c) {
      targets(c, t);
#pragma omp simd reduction(| : found)
      for (int64_t i = 0; i < n_; ++i) {
        is_ignored[i] |= t[i] == ignored;
        is_bad[i] |= integers & ((t[i] > 1) | (t[i] < 0));
        found |= is_ignored[i] | is_bad[i];
      }
    }
    this->read_upstream(s.upstream);
    for (int64_t i = 0; i < width_; ++i) s.factor[i] = s.largest_slope[i] = 0, s.slope_at[i] = -1;
    for (int64_t i = 0; i < n_; ++i) {
      s.factor[i] = this->weight(this->row_of(i)) * this->defined_at(i, s.top[i]);
      s.unread[i] = is_ignored[i] | is_bad[i];
      s.constant[i] = is_ignored[i] ? acc_t(0) : acc_t(__builtin_nan(""));
      if (is_ignored[i]) common_.tell_ignored();
    }
    s.has_unread = found != 0;
  }

  FOCAL_EXT_ONE_COPY void add_exponentials(Strip_& s, Buffers& b) const {
    StripSums<acc_t> sums;
    for (int64_t c = 0; c < classes_; ++c) {
      prefetch(c);
      const acc_t* const x = this->logits_again(c, b.p);
      acc_t* const e = b.p + this->place(c);
      const Class here = Class(c);
      for (int64_t at = 0; at < width_; at += kStep)
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) {
          e[i] = exp_below<Math>(x[i], s.top[i]);
          sums.part[i] += s.top_at[i] == here ? acc_t(0) : e[i];
        }
      sums.close(c, classes_, width_);
    }
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i) {
      s.rest[i] = acc_t(sums.total[i]);
      s.sum[i] = s.rest[i] + exp_below<Math>(s.top[i], s.top[i]);
      s.log_sum[i] = log_of_sum<Math>(s.sum[i], s.rest[i]);
    }
  }

  // The terms of a class; `adds`: to the sums of the rows, too.
  FOCAL_EXT_ONE_COPY void terms(Strip_& s, Buffers& b, int64_t c, bool adds) const {
    alignas(64) acc_t buffer[kMaxStrip], coefficient[kMaxStrip], value[kMaxStrip];
    const acc_t* const x = this->logits(c, buffer);
    acc_t* const p = b.p + this->place(c);
    acc_t* const slope = b.slope + this->place(c);
    acc_t* const u = b.u + this->place(c);
    const Class here = Class(c);
    targets(c, coefficient);
    const acc_t alpha = this->alpha(c);
    for (int64_t i = 0; i < width_; ++i) coefficient[i] *= alpha;
    if (!keeps_)
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) p[i] = exp_below<Math>(x[i], s.top[i]);
    // By pointers, as in compute_terms().
    with_gamma<acc_t>(
        p_.loss_parameters.numbers[0], [=, n = width_, top_at = s.top_at, top = s.top, rest = s.rest, sum = s.sum,
                                           log_sum = s.log_sum, factor = coefficient, to = value](auto modulator) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const acc_t others = top_at[i] == here ? rest[i] : sum[i] - p[i];
        const acc_t distance = Base::finite_if(factor[i] == 0, x[i] == top[i] ? acc_t(0) : top[i] - x[i]);
        const SoftmaxTerm<acc_t> t = softmax_focal_term<Math>(p[i], others, sum[i], distance, log_sum[i], modulator);
        to[i] = factor[i] * t.value, slope[i] = factor[i] * t.slope, p[i] = t.p, u[i] = t.u;
      }
    });
    if (!adds) return;
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i) {
      s.values.part[i] += value[i];
      const bool larger = slope[i] > s.largest_slope[i];
      s.slopes.part[i] += larger ? s.largest_slope[i] : slope[i];
      s.slope_at[i] = larger ? here : s.slope_at[i];
      s.largest_slope[i] = larger ? slope[i] : s.largest_slope[i];
    }
    s.values.close(c, classes_, width_);
    s.slopes.close(c, classes_, width_);
  }

  // df/dx_c = p_c (sum of the other slopes) - slope_c u_c
  FOCAL_EXT_ONE_COPY void put_gradients(Strip_& s, Buffers& b) const {
    for (int64_t i = 0; i < n_; ++i) s.factor[i] *= s.upstream[i];
    for (int64_t c = 0; c < classes_; ++c) {
      if (!keeps_) terms(s, b, c, false);
      acc_t* const p = b.p + this->place(c);
      const acc_t* const slope = b.slope + this->place(c);
      const acc_t* const u = b.u + this->place(c);
      acc_t* const gradient = this->gradient_at(c, p);
      const Class here = Class(c);
      for (int64_t at = 0; at < width_; at += kStep)
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) {
          const acc_t others =
              s.slope_at[i] == here ? s.rest_of_slopes[i] : (s.rest_of_slopes[i] + s.largest_slope[i]) - slope[i];
          gradient[i] = s.factor[i] * (p[i] * others - slope[i] * u[i]);
        }
      if (s.has_unread) this->replace(s.unread, s.constant, n_, gradient);
      this->put(c, gradient);
    }
  }

  const Common& common_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

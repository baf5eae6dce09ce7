// Owns: the softmax loss of class ids in planes, a strip in blocks of positions.
// Must not know: formulas, threads, tensors, and the standard library (see storage.h). Compiled once per instruction
// set.
#pragma once
#include "softmax_planes.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

template <class acc_t>
class IdPlanes : SoftmaxPlanes<acc_t> {
  using Base = SoftmaxPlanes<acc_t>;
  using typename Base::Class, typename Base::Math;
  using Base::classes_, Base::keeps_, Base::n_, Base::p_, Base::smoothing_, Base::width_;

 public:
  static constexpr int64_t kKept = kBlockMost * sizeof(float) / sizeof(acc_t);

  // What is known of a block from stage to stage.
  struct Known {
    RowTerms<acc_t> terms;
    alignas(64) Class label[kMaxStrip];  // negative: no logit of the row is read
    acc_t x_y[kMaxStrip];
    bool has_no_alpha[kMaxStrip], unread[kMaxStrip], has_unread, has_infinite;
    alignas(64) acc_t buffer[kKept];  // logits, then their exponentials
  };

  IdPlanes(const Problem& problem, const Strip& block, const Common& common, Known& known)
      : Base(problem, block, common, kKept), known_(known), t_(known.terms) {}

  void read_all() const {
    begin_reading();
    for (int64_t c = 0; c < classes_; ++c) read(c);
  }

  // All but the gradients. Exponentials keep the processor busy, the gradients of the block before and the logits of
  // the next keep the memory busy.
  double compute(const IdPlanes* before, const IdPlanes* next) const {
    open();
    if (smoothing_ != 0) find_mean_distance();
    add_exponentials(before, next);
    if (known_.has_infinite) correct_where_infinite();
    RowTerms<acc_t>& t = known_.terms;
    compute_terms(t, width_, p_);
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i) {
      t.value[i] = known_.label[i] < 0 ? t.value_factor[i] : t.value_factor[i] * t.value[i];
      t.of_others[i] *= t.gradient_factor[i];
      t.shift[i] *= t.gradient_factor[i];
      t.of_own[i] *= t.gradient_factor[i];
    }
    return this->finish(t.value);
  }

  void put_gradients() const {
    for (int64_t c = 0; p_.gradient && c < classes_; ++c) put_gradient(c);
  }

 private:
  static constexpr int64_t kAheadClasses = 2;

  void begin_reading() const { Base::template begin<false>(t_.top, nullptr); }
  void read(int64_t c) const { Base::template read<false>(c, t_.top, nullptr, known_.buffer); }

  // Everything about the rows that needs no sum.
  FOCAL_EXT_ONE_COPY void open() const {
    Known& s = known_;
    RowTerms<acc_t>& t = t_;
    for (int64_t i = 0; i < width_; ++i) t.value_factor[i] = acc_t(p_.alpha_positive), t.mean_distance[i] = 0;
    for (int64_t i = n_; i < width_; ++i) s.label[i] = 0, s.x_y[i] = 0;
    find_labels();
    if (keeps_) {
      for (int64_t i = 0; i < n_; ++i) s.x_y[i] = s.buffer[(s.label[i] < 0 ? 0 : s.label[i]) * width_ + i];
    } else {
      for (int64_t i = 0; i < n_; ++i) s.x_y[i] = this->logit(s.label[i] < 0 ? 0 : s.label[i], i);
    }
    for (int64_t i = 0; p_.alpha && i < n_; ++i)
      t.value_factor[i] = s.label[i] < 0 ? acc_t(1) : this->alpha(s.label[i]);
    const bool may_be_without = p_.alpha || p_.alpha_positive == 0;
    for (int64_t i = 0; i < width_; ++i) s.has_no_alpha[i] = may_be_without && t.value_factor[i] == 0;
    for (int64_t i = 0; p_.weight && i < n_; ++i) t.value_factor[i] *= this->weight(this->row_of(i));
    multiply_where_undefined();
    if (s.has_unread) set_constants();
    acc_t upstream[kMaxStrip];
    this->read_upstream(upstream);
    for (int64_t i = 0; i < n_; ++i) t.gradient_factor[i] = t.value_factor[i] * upstream[i];
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i) {
      t.distance[i] = s.x_y[i] == t.top[i] ? acc_t(0) : t.top[i] - s.x_y[i];
      t.own[i] = exp_below<Math>(s.x_y[i], t.top[i]);
    }
    for (int64_t i = 0; may_be_without && i < width_; ++i)
      t.distance[i] = this->finite_if(s.has_no_alpha[i], t.distance[i]);
  }

  FOCAL_EXT_ONE_COPY void find_labels() const {
    Known& s = known_;
    // Which no label is, unless it is unread anyway.
    const int64_t ignored = p_.has_ignore_index ? p_.ignore_index : -1, step = this->strip_.anchors;
    const uint64_t classes = uint64_t(classes_);
    int unread = 0;
    with_ids(p_, [&](const auto* ids) {
      const auto* const own = ids + this->row_of(0);
#pragma omp simd reduction(| : unread)
      for (int64_t i = 0; i < n_; ++i) {
        const int64_t label = widened(own[i * step]);
        const bool is_read = (uint64_t(label) < classes) & (label != ignored);
        s.label[i] = is_read ? Class(label) : Class(-1);
        unread |= !is_read;
      }
    });
    s.has_unread = unread != 0;
  }

  // What rows have that are not read: 0 where they are ignored, else NaN.
  FOCAL_EXT_ONE_COPY void set_constants() const {
    Known& s = known_;
    for (int64_t i = 0; i < n_; ++i) {
      s.unread[i] = s.label[i] < 0;
      if (!s.unread[i]) continue;
      const bool is_ignored = row_kind(p_, label_at(p_, this->row_of(i))) == Row::ignored;
      s.terms.value_factor[i] = is_ignored ? acc_t(0) : acc_t(__builtin_nan(""));
    }
  }

  FOCAL_EXT_ONE_COPY void multiply_where_undefined() const {
    int infinite = 0;
#pragma omp simd reduction(| : infinite)
    for (int64_t i = 0; i < n_; ++i) infinite |= !(Math::abs(t_.top[i]) < acc_t(__builtin_inf()));
    for (int64_t i = 0; infinite && i < n_; ++i) t_.value_factor[i] *= this->defined_at(i, t_.top[i]);
    known_.has_infinite = infinite != 0;
  }

  // Of top - x over the classes; each term is divided, so that the sum cannot overflow.
  FOCAL_EXT_ONE_COPY void find_mean_distance() const {
    StripSums<acc_t> sums;
    const acc_t share = acc_t(1) / acc_t(classes_);
    const acc_t* const top = t_.top;
    for (int64_t c = 0; c < classes_; ++c) {
      const acc_t* const x = this->logits_again(c, known_.buffer);
      for (int64_t at = 0; at < width_; at += kStep)
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) sums.part[i] += x[i] == top[i] ? acc_t(0) : (top[i] - x[i]) * share;
      sums.close(c, classes_, width_);
    }
    for (int64_t i = 0; i < width_; ++i)
      t_.mean_distance[i] = this->finite_if(known_.has_no_alpha[i], acc_t(sums.total[i]));
  }

  // Into the buffer, and the sums of all but that of the label.
  FOCAL_EXT_ONE_COPY void add_exponentials(const IdPlanes* before, const IdPlanes* next) const {
    StripSums<acc_t> sums;
    const acc_t* const top = t_.top;
    const Class* const label = known_.label;
    if (next) next->begin_reading();
    for (int64_t c = 0; c < classes_; ++c) {
      if (next) next->read(c);
      if (before) before->put_gradient(c);
      const acc_t* const x = this->logits_again(c, known_.buffer);
      acc_t* const e = known_.buffer + this->place(c);
      const Class here = Class(c);
      for (int64_t at = 0; at < width_; at += kStep) {
        prefetch(c + kAheadClasses, at, before, next);
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) {
          e[i] = exp_below_finite<Math>(x[i], top[i]);
          sums.part[i] += label[i] == here ? acc_t(0) : e[i];
        }
      }
      sums.close(c, classes_, width_);
    }
    for (int64_t i = 0; i < width_; ++i) t_.others[i] = acc_t(sums.total[i]);
  }

  // Exponentials of rows whose largest logit is infinite: 1 where it is, 0 elsewhere; NaN stays.
  FOCAL_EXT_ONE_COPY void correct_where_infinite() const {
    for (int64_t i = 0; i < n_; ++i) {
      const acc_t top = t_.top[i];
      if (Math::abs(top) < acc_t(__builtin_inf())) continue;
      t_.others[i] = 0;
      for (int64_t c = 0; c < classes_; ++c) {
        const acc_t x = this->logit(c, i), e = x == top ? acc_t(1) : x == x ? acc_t(0) : x;
        if (keeps_) known_.buffer[this->place(c) + i] = e;
        if (known_.label[i] != Class(c)) t_.others[i] += e;
      }
    }
  }

  // What the blocks beside this one will want: a step at a time, as many at once would wait for each other.
  FOCAL_EXT_INLINE void prefetch(int64_t c, int64_t at, const IdPlanes* before, const IdPlanes* next) const {
    if (c >= classes_) return;
    if (next) Base::prefetch(p_.inputs, next->first_of(c) + at, kStep);
    if (before) Base::prefetch(p_.gradient, before->first_of(c) + at, kStep);
  }

  FOCAL_EXT_ONE_COPY void put_gradient(int64_t c) const {
    acc_t* const e = known_.buffer + this->place(c);
    if (!keeps_) {
      const acc_t* const x = this->logits(c, e);
      const acc_t* const top = t_.top;
      for (int64_t at = 0; at < width_; at += kStep)
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) e[i] = exp_below<Math>(x[i], top[i]);
    }
    acc_t* const gradient = this->gradient_at(c, e);
    const Class here = Class(c);
    const Known& k = known_;
    for (int64_t at = 0; at < width_; at += kStep)
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i)
        gradient[i] = k.label[i] == here ? k.terms.of_own[i] : k.terms.of_others[i] * e[i] - k.terms.shift[i];
    if (known_.has_unread) this->replace(known_.unread, t_.value_factor, n_, gradient);
    this->put(c, gradient);
  }

  Known& known_;
  RowTerms<acc_t>& t_;
};

// A strip, block by block. Three are under way: the first two stages of one, the last of the one before, the first of
// the next.
template <class acc_t>
double run_id_planes(const Problem& problem, const Strip& strip, const Common& common) {
  using Planes = IdPlanes<acc_t>;
  typename Planes::Known known[3];
  const int64_t width = softmax_block(problem.classes), blocks = (strip.count + width - 1) / width;
  const auto block = [&](int64_t k) {
    const int64_t at = k * width, rest = strip.count - at;
    const Strip own = {strip.anchors, strip.positions, strip.anchor, strip.first + at, rest < width ? rest : width};
    return Planes(problem, own, common, known[k % 3]);
  };
  double total = 0;
  block(0).read_all();
  for (int64_t k = 0; k < blocks; ++k) {
    const Planes before = block(k > 0 ? k - 1 : 0), next = block(k + 1 < blocks ? k + 1 : k);
    const bool has_before = k > 0 && problem.gradient;
    total += block(k).compute(has_before ? &before : nullptr, k + 1 < blocks ? &next : nullptr);
  }
  block(blocks - 1).put_gradients();
  return total;
}

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

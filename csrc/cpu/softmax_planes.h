// Owns: the softmax loss of logits in planes, a strip of positions at a time: every loop runs over neighbouring
// positions, class by class.
// Must not know: formulas, threads, tensors, and the standard library (see storage.h). Compiled once per instruction
// set.
#pragma once
#include "softmax_rows.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// A row's class, or a row's largest class, in lanes as wide as its numbers.
template <class acc_t>
struct class_index {
  using type = int32_t;
};
template <>
struct class_index<double> {
  using type = int64_t;
};

// Calls f with memory of logits' type as it is stored.
template <class F>
void with_stored(const void* memory, Scalar scalar, F f) {
  switch (scalar) {
    case Scalar::f64: return f(static_cast<const double*>(memory));
    case Scalar::bf16: return f(static_cast<const BFloat16*>(memory));
    case Scalar::f16: return f(static_cast<const Float16*>(memory));
    default: return f(static_cast<const float*>(memory));
  }
}

// Sums of a strip's classes, one a position: acc_t over kPart classes, double beyond.
template <class acc_t>
struct StripSums {
  static constexpr int64_t kPart = 16;
  double total[kMaxStrip] = {};
  acc_t part[kMaxStrip] = {};

  void close(int64_t c, int64_t classes, int64_t width) {
    if ((c + 1) % kPart != 0 && c + 1 < classes) return;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) total[i] += double(part[i]), part[i] = 0;
  }
};

// The problem is one image of one level, as in planes.h. Loops run over whole steps; what lies beyond the strip is
// never stored.
template <class acc_t>
class SoftmaxPlanes : protected SoftmaxRows<acc_t> {
 protected:
  using Base = SoftmaxRows<acc_t>;
  using Math = typename Base::Math;
  using Class = typename class_index<acc_t>::type;
  using Base::classes_;
  using Base::p_;

  SoftmaxPlanes(const Problem& problem, const Strip& strip, const Common& common, int64_t kept_logits)
      : Base(problem, common.scale), strip_(strip), n_(strip.count), width_(whole_steps(strip.count)),
        keeps_(problem.classes * width_ <= kept_logits), direct_(!is_half(problem.scalar) && n_ == width_) {}

  int64_t begin(int64_t c) const { return (strip_.anchor * classes_ + c) * strip_.positions + strip_.first; }
  int64_t row_of(int64_t i) const { return (strip_.first + i) * strip_.anchors + strip_.anchor; }

  // Where a class has its numbers in a buffer: a place of its own, if they are kept from pass to pass.
  int64_t place(int64_t c) const { return keeps_ ? c * width_ : 0; }

  // In place, or in `buffer`.
  const acc_t* logits(int64_t c, acc_t* buffer) const { return load_block(p_.inputs, p_.scalar, begin(c), n_, buffer); }
  // From the second pass on, of a buffer that keeps them: planes lie apart by a power of two often, of which a cache
  // holds few.
  const acc_t* logits_again(int64_t c, acc_t* buffer) const { return keeps_ ? buffer + place(c) : logits(c, buffer); }

  // Asks, while exponentials keep the processor busy, for what the other passes wait for: a class's gradient, and its
  // logits in the next strip, which is nearly always computed next. No processor guesses where the next plane lies.
  void prefetch(int64_t c) const {
    const int64_t next = strip_.first + n_, rest = strip_.positions - next;
    if (p_.gradient) prefetch(p_.gradient, begin(c), n_);
    prefetch(p_.inputs, begin(c) + n_, rest < n_ ? rest : n_);
  }
  void prefetch(const void* tensor, int64_t first, int64_t n) const {
    const int64_t size = size_of(p_.scalar);
    constexpr int kSecondLevel = 2;
    for (int64_t i = 0; i < n * size; i += 64)
      __builtin_prefetch(static_cast<const char*>(tensor) + first * size + i, 0, kSecondLevel);
  }

  // The largest logits, NaN left out, and where they are.
  template <bool places>
  FOCAL_EXT_ONE_COPY void find_top(acc_t* top, Class* at, acc_t* buffer) const {
    for (int64_t i = 0; i < width_; ++i) top[i] = acc_t(-__builtin_inf());
    for (int64_t i = 0; places && i < width_; ++i) at[i] = 0;
    for (int64_t c = 0; c < classes_; ++c) {
      acc_t* const own = buffer + place(c);
      const acc_t* const x = logits(c, own);
      const Class here = Class(c);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) {
        if constexpr (places) at[i] = x[i] > top[i] ? here : at[i];
        top[i] = x[i] > top[i] ? x[i] : top[i];
        own[i] = x[i];
      }
    }
  }

  // 1, or NaN as in SoftmaxRows.
  acc_t defined_at(int64_t i, acc_t top) const {
    if (Math::abs(top) < acc_t(__builtin_inf())) return 1;
    int64_t not_below = 0;
    with_stored(p_.inputs, p_.scalar, [&](const auto* x) {
      for (int64_t c = 0; c < classes_; ++c) not_below += !(acc_t(load(x[begin(c) + i])) < top);
    });
    return not_below > 1 ? acc_t(__builtin_nan("")) : acc_t(1);
  }

  // What the derivatives are multiplied by.
  FOCAL_EXT_ONE_COPY void read_upstream(acc_t* upstream) const {
    for (int64_t i = 0; i < n_; ++i) upstream[i] = this->scale_;
    if (!p_.grad_output_per_element) return;
    with_stored(p_.grad_output, p_.scalar, [&](const auto* g) {
      for (int64_t i = 0; i < n_; ++i) upstream[i] *= acc_t(load(g[row_of(i)]));
    });
  }

  // Stores the losses of the strip's rows, if they are wanted, and returns their sum.
  FOCAL_EXT_ONE_COPY double finish(const acc_t* values) const {
    if (p_.loss_map)
      with_stored(p_.loss_map, p_.scalar, [&]<class scalar_t>(const scalar_t*) {
        for (int64_t i = 0; i < n_; ++i) store(static_cast<scalar_t*>(p_.loss_map)[row_of(i)], values[i]);
      });
    return p_.loss ? sum(values, n_) : 0;
  }

  // Where a plane's gradients are to be written before put().
  acc_t* gradient_at(int64_t c, acc_t* buffer) const {
    return direct_ ? static_cast<acc_t*>(p_.gradient) + begin(c) : buffer;
  }
  void put(int64_t c, const acc_t* gradient) const {
    if (!direct_) store_block(gradient, n_, p_.gradient, p_.scalar, begin(c));
  }

  // Rows that are not computed have a constant, whatever their logits are.
  static void replace(const bool* unread, const acc_t* constant, int64_t n, acc_t* values) {
    for (int64_t i = 0; i < n; ++i) values[i] = unread[i] ? constant[i] : values[i];
  }

  const Strip strip_;
  const int64_t n_, width_;
  const bool keeps_, direct_;
};

template <class acc_t>
class IdPlanes : SoftmaxPlanes<acc_t> {
  using Base = SoftmaxPlanes<acc_t>;
  using typename Base::Class, typename Base::Math;
  using Base::classes_, Base::keeps_, Base::n_, Base::p_, Base::smoothing_, Base::width_;

 public:
  IdPlanes(const Problem& problem, const Strip& strip, const Common& common)
      : Base(problem, strip, common, kStripLogits) {}

  double run() const {
    alignas(64) acc_t buffer[kStripLogits];
    Strip_ s;
    this->template find_top<false>(s.terms.top, nullptr, buffer);
    open(s, buffer);
    if (smoothing_ != 0) find_mean_distance(s, buffer);
    add_exponentials(s, buffer);
    compute_terms(s.terms, width_, p_);
    RowTerms<acc_t>& t = s.terms;
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i)
      t.value[i] = s.label[i] < 0 ? t.value_factor[i] : t.value_factor[i] * t.value[i];
    if (p_.gradient) put_gradients(s, buffer);
    return this->finish(t.value);
  }

 private:
  struct Strip_ {
    RowTerms<acc_t> terms;
    alignas(64) Class label[kMaxStrip];  // negative: no logit of the row is read
    acc_t x_y[kMaxStrip];
    bool has_no_alpha[kMaxStrip], unread[kMaxStrip], has_unread;
  };

  // Everything about the rows that needs no sum.
  FOCAL_EXT_ONE_COPY void open(Strip_& s, const acc_t* buffer) const {
    RowTerms<acc_t>& t = s.terms;
    for (int64_t i = 0; i < width_; ++i) t.value_factor[i] = acc_t(p_.alpha_positive), t.mean_distance[i] = 0;
    for (int64_t i = n_; i < width_; ++i) s.label[i] = 0, s.x_y[i] = 0;
    find_labels(s);
    if (keeps_) {
      for (int64_t i = 0; i < n_; ++i) s.x_y[i] = buffer[(s.label[i] < 0 ? 0 : s.label[i]) * width_ + i];
    } else {
      with_stored(p_.inputs, p_.scalar, [&](const auto* x) {
        for (int64_t i = 0; i < n_; ++i) s.x_y[i] = acc_t(load(x[this->begin(s.label[i] < 0 ? 0 : s.label[i]) + i]));
      });
    }
    for (int64_t i = 0; p_.alpha && i < n_; ++i)
      t.value_factor[i] = s.label[i] < 0 ? acc_t(1) : this->alpha(s.label[i]);
    const bool may_be_without = p_.alpha || p_.alpha_positive == 0;
    for (int64_t i = 0; i < width_; ++i) s.has_no_alpha[i] = may_be_without && t.value_factor[i] == 0;
    for (int64_t i = 0; p_.weight && i < n_; ++i) t.value_factor[i] *= this->weight(this->row_of(i));
    multiply_where_undefined(t);
    if (s.has_unread) set_constants(s);
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

  FOCAL_EXT_ONE_COPY void find_labels(Strip_& s) const {
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
  FOCAL_EXT_ONE_COPY void set_constants(Strip_& s) const {
    for (int64_t i = 0; i < n_; ++i) {
      s.unread[i] = s.label[i] < 0;
      if (!s.unread[i]) continue;
      const bool is_ignored = row_kind(p_, label_at(p_, this->row_of(i))) == Row::ignored;
      s.terms.value_factor[i] = is_ignored ? acc_t(0) : acc_t(__builtin_nan(""));
    }
  }

  FOCAL_EXT_ONE_COPY void multiply_where_undefined(RowTerms<acc_t>& t) const {
    int infinite = 0;
#pragma omp simd reduction(| : infinite)
    for (int64_t i = 0; i < n_; ++i) infinite |= !(Math::abs(t.top[i]) < acc_t(__builtin_inf()));
    for (int64_t i = 0; infinite && i < n_; ++i) t.value_factor[i] *= this->defined_at(i, t.top[i]);
  }

  // Of top - x over the classes; each term is divided, so that the sum cannot overflow.
  FOCAL_EXT_ONE_COPY void find_mean_distance(Strip_& s, acc_t* buffer) const {
    StripSums<acc_t> sums;
    const acc_t share = acc_t(1) / acc_t(classes_);
    const acc_t* const top = s.terms.top;
    for (int64_t c = 0; c < classes_; ++c) {
      const acc_t* const x = this->logits_again(c, buffer);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) sums.part[i] += x[i] == top[i] ? acc_t(0) : (top[i] - x[i]) * share;
      sums.close(c, classes_, width_);
    }
    for (int64_t i = 0; i < width_; ++i)
      s.terms.mean_distance[i] = this->finite_if(s.has_no_alpha[i], acc_t(sums.total[i]));
  }

  // Into the buffer, and the sums of all but that of the label.
  FOCAL_EXT_ONE_COPY void add_exponentials(Strip_& s, acc_t* buffer) const {
    StripSums<acc_t> sums;
    const acc_t* const top = s.terms.top;
    for (int64_t c = 0; c < classes_; ++c) {
      this->prefetch(c);
      const acc_t* const x = this->logits_again(c, buffer);
      acc_t* const e = buffer + this->place(c);
      const Class here = Class(c);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) {
        e[i] = exp_below<Math>(x[i], top[i]);
        sums.part[i] += s.label[i] == here ? acc_t(0) : e[i];
      }
      sums.close(c, classes_, width_);
    }
    for (int64_t i = 0; i < width_; ++i) s.terms.others[i] = acc_t(sums.total[i]);
  }

  FOCAL_EXT_ONE_COPY void put_gradients(Strip_& s, acc_t* buffer) const {
    RowTerms<acc_t>& t = s.terms;
#pragma omp simd
    for (int64_t i = 0; i < width_; ++i)
      t.of_others[i] *= t.gradient_factor[i], t.shift[i] *= t.gradient_factor[i], t.of_own[i] *= t.gradient_factor[i];
    for (int64_t c = 0; c < classes_; ++c) {
      acc_t* const e = buffer + this->place(c);
      if (!keeps_) {
        const acc_t* const x = this->logits(c, e);
#pragma omp simd
        for (int64_t i = 0; i < width_; ++i) e[i] = exp_below<Math>(x[i], t.top[i]);
      }
      acc_t* const gradient = this->gradient_at(c, e);
      const Class here = Class(c);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i)
        gradient[i] = s.label[i] == here ? t.of_own[i] : t.of_others[i] * e[i] - t.shift[i];
      if (s.has_unread) this->replace(s.unread, t.value_factor, n_, gradient);
      this->put(c, gradient);
    }
  }
};

template <class acc_t>
class DensePlanes : SoftmaxPlanes<acc_t> {
  using Base = SoftmaxPlanes<acc_t>;
  using typename Base::Class, typename Base::Math;
  using Base::classes_, Base::keeps_, Base::n_, Base::p_, Base::width_;

 public:
  DensePlanes(const Problem& problem, const Strip& strip, const Common& common)
      : Base(problem, strip, common, kDenseStripLogits), common_(common) {}

  double run() const {
    Buffers b;
    Strip_ s;
    this->template find_top<true>(s.top, s.top_at, b.p);
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

  // Targets of a class as acc_t.
  FOCAL_EXT_ONE_COPY void targets(int64_t c, acc_t* to) const {
    with_dense(p_, [&](const auto* t) { widen(t + this->begin(c), n_, to); });
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
      this->prefetch(c);
      const acc_t* const x = this->logits_again(c, b.p);
      acc_t* const e = b.p + this->place(c);
      const Class here = Class(c);
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) {
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
#pragma omp simd
      for (int64_t i = 0; i < width_; ++i) {
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

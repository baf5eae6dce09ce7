// Owns: a loss over blocks of elements: factors, the loops of the formulas, what is written.
// Must not know: how elements lie in rows or planes, threads, tensors, and the standard library (see storage.h).
#pragma once
#include "../losses/list.h"
#include "block.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The arithmetic for logits within Math::limit().
template <class Math>
struct within_limit {
  using type = Math;
  static constexpr bool is_cheaper = false;
};
template <Precision precision>
struct within_limit<Host<precision, Tail::vanishing>> {
  using type = Host<precision, Tail::absent>;
  static constexpr bool is_cheaper = true;
};

template <class Math, class Loss>
class Elements {
 public:
  using acc_t = typename Math::value_t;

  Elements(const Problem& problem, const Loss& loss, double scale)
      : p_(problem), loss_(loss), scale_(scale), is_half_(problem.scalar == Scalar::bf16 || problem.scalar == Scalar::f16),
        alpha_(static_cast<const acc_t*>(problem.alpha)), weight_(static_cast<const acc_t*>(problem.weight)),
        uniform_(!problem.alpha && !problem.weight && !problem.grad_output_per_element && problem.alpha_negative != 0) {}

 protected:
  using Both = ValueAndGradient<acc_t>;

  // Negatives with one factor for all: the hot path, and nearly every element of a detector. Returns the sum of losses.
  FOCAL_EXT_ONE_COPY double uniform(const acc_t* x, int64_t begin, int64_t n, Specials<acc_t>* specials) const {
    const acc_t value = acc_t(p_.alpha_negative), gradient = acc_t(p_.alpha_negative * scale_);
    const auto with = [&]<class AnyMath>(AnyMath) {
      // By value: behind a pointer the compiler would have to reload them after every store.
      return emit(begin, n, [gradient, x, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
        const Both term = loss.template negative<AnyMath>(x[i]);
        return Both{term.value, gradient * term.gradient};
      }, value, specials);
    };
    if (within_limit<Math>::is_cheaper && is_within_limit(x, begin, n)) return with(typename within_limit<Math>::type());
    return with(Math());
  }

  // Negatives with factors of their own.
  FOCAL_EXT_ONE_COPY double varied(const Block<acc_t>& b, int64_t begin, int64_t n, Specials<acc_t>* specials) const {
    return emit(begin, n, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const Both term = loss.template negative<Math>(b.x[i]);
      return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
    }, acc_t(1), specials);
  }

  FOCAL_EXT_ONE_COPY double dense(const Block<acc_t>& b, int64_t begin, int64_t n) const {
    return emit(begin, n, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const Both term = loss.template dense<Math>(b.x[i], b.t[i]);
      return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
    }, acc_t(1), nullptr);
  }

  // Element (row, c), which has the logit x, the target t and the upstream factor, as entry i of the block.
  void fill(Block<acc_t>& b, int64_t i, int64_t row, int64_t c, acc_t x, acc_t t, acc_t upstream) const {
    const acc_t of_one = alpha_ ? alpha_[c] : acc_t(p_.alpha_positive), of_zero = alpha_ ? acc_t(1) - alpha_[c] : acc_t(p_.alpha_negative);
    const acc_t a = Loss::factor(t, of_one, of_zero);
    b.x[i] = a == 0 ? finite(x) : x;
    b.t[i] = t;
    b.value[i] = a * (weight_ ? weight_[row * p_.weight_row_stride + c * p_.weight_class_stride] : acc_t(1));
    b.gradient[i] = b.value[i] * upstream;
  }

  void add_positive(Specials<acc_t>& s, int64_t at, int64_t row, int64_t c, acc_t x, acc_t upstream) const {
    fill(s.positives, s.count, row, c, x, p_.scores ? static_cast<const acc_t*>(p_.scores)[row] : acc_t(1), upstream);
    s.at[s.count++] = at;
  }

  const Problem& p_;
  const Loss& loss_;
  const double scale_;
  const bool is_half_;
  const acc_t* const alpha_;
  const acc_t* const weight_;
  const bool uniform_;

 private:
  // bf16 is looked at as it lies in memory: twice as many logits an instruction.
  bool is_within_limit(const acc_t* x, int64_t begin, int64_t n) const {
    if (p_.scalar != Scalar::bf16) return is_within(acc_t(Math::limit()), x, whole_steps(n));
    BFloat16 limit;
    store(limit, float(Math::limit()));
    return is_within(limit, static_cast<const BFloat16*>(p_.inputs) + begin, n);
  }

  // Applies `term` to n elements, puts the specials in their places, and writes what is wanted. Gradients are computed when they are
  // stored, and only then. The losses' common factor is left to their sum.
  template <class Term>
  double emit(int64_t begin, int64_t n, Term term, acc_t factor, Specials<acc_t>* specials) const {
    acc_t values[kBlock], buffer[kBlock];
    const bool direct = !is_half_ && n % kStep == 0;
    acc_t* const gradient = !p_.gradient ? nullptr : direct ? static_cast<acc_t*>(p_.gradient) + begin : buffer;
    for (int64_t at = 0; at < n; at += kStep) {
      if (gradient) {
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) {
          const Both both = term(i);
          values[i] = both.value;
          gradient[i] = both.gradient;
        }
      } else {
#pragma omp simd
        for (int64_t i = at; i < at + kStep; ++i) values[i] = term(i).value;
      }
    }
    if (p_.loss_map) multiply(values, n, factor);
    const double others = specials ? put(*specials, values, gradient) : 0;
    if (gradient && !direct) store_block(gradient, n, p_.gradient, p_.scalar, begin);
    if (p_.loss_map) store_block(values, n, p_.loss_map, p_.scalar, begin);
    return p_.loss ? double(factor) * sum(values, n) + others : 0;
  }

  // Computes the positives side by side, then puts each in its place, or returns their sum where that is all that is wanted.
  FOCAL_EXT_ONE_COPY double put(Specials<acc_t>& s, acc_t* values, acc_t* gradient) const {
    Block<acc_t>& b = s.positives;
    b.pad(s.count);
    for (int64_t at = 0; at < s.count; at += kStep)
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i) {
        const Both term = loss_.template positive<Math>(b.x[i], b.t[i]);
        b.value[i] *= term.value;
        b.gradient[i] *= term.gradient;
      }
    double total = 0;
    for (int64_t i = 0; i < s.count; ++i) {
      values[s.at[i]] = p_.loss_map ? b.value[i] : 0;
      total += double(b.value[i]);
      if (gradient) gradient[s.at[i]] = b.gradient[i];
    }
    for (int64_t r = 0; r < s.ranges; ++r) {
      const acc_t constant = s.constant[r];
      for (int64_t i = s.first[r]; i < s.last[r]; ++i) values[i] = constant;
      if (gradient)
        for (int64_t i = s.first[r]; i < s.last[r]; ++i) gradient[i] = constant;
    }
    return total;
  }
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

// Owns: a loss over blocks of elements: factors, the loops of the formulas, what is written.
// Must not know: how elements lie in rows or planes, threads, tensors, and the standard library (see storage.h).
#pragma once
#include "../losses/list.h"
#include "factors.h"
#include "table.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The arithmetic for logits within Math::limit().
template <class Math>
struct within_limit {
  using type = Math;
  static constexpr bool is_cheaper = false;
};
template <Precision precision, Tail tail>
  requires(tail == Tail::vanishing || tail == Tail::falling)
struct within_limit<Host<precision, tail>> {
  using type = Host<precision, Tail::absent>;
  static constexpr bool is_cheaper = true;
};

// The negatives of a loss: of many losses the focal loss's, whose loop they share.
template <class Loss>
FOCAL_EXT_INLINE auto negatives_of(const Loss& loss) {
  if constexpr (requires { loss.negatives(); }) return loss.negatives();
  else return loss;
}

// Their arithmetic: in float as cheap as their results permit, where positives need more.
template <class Math, class Negatives>
struct math_of {
  using type = Math;
};
template <Precision precision, class Negatives>
  requires requires { Negatives::tail; }
struct math_of<Host<precision, Tail::full>, Negatives> {
  using type = Host<precision, Negatives::tail>;
};

// Whether a loop computes two vectors side by side. The instructions of one vector wait for each other, and the
// processor looks ahead no further than to the next vector. A full tail needs the registers of both for one.
template <class Math>
constexpr bool kSideBySide = false;
#ifdef __AVX512F__
template <Precision precision, Tail tail>
constexpr bool kSideBySide<Host<precision, tail>> = tail != Tail::full;
#endif

// The terms of n elements. Gradients are computed when they are stored, and only then.
template <bool side_by_side, class acc_t, class Term>
FOCAL_EXT_INLINE void compute(int64_t n, Term term, acc_t* values, acc_t* gradient) {
  // GCC takes as many elements a step as a vector has of the loop's narrowest type: with 16 bits, two vectors of float.
  // Nobody reads these numbers. The asm hides that, or the compiler would drop them.
  uint16_t numbers[kStep], *narrow = numbers;
  asm("" : "+r"(narrow));
  for (int64_t at = 0; at < n; at += kStep) {
    if (gradient) {
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i) {
        const auto both = term(i);
        values[i] = both.value;
        gradient[i] = both.gradient;
        if constexpr (side_by_side) narrow[i - at] = 0x0102;
      }
    } else {
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i) {
        values[i] = term(i).value;
        if constexpr (side_by_side) narrow[i - at] = 0x0102;
      }
    }
  }
  if constexpr (side_by_side) asm volatile("" : : "r"(narrow) : "memory");
}

// Negatives with one factor for all; the losses without it. `within`: no logit is beyond Math::limit().
template <class Math, class Negatives, class acc_t>
FOCAL_EXT_ONE_COPY void compute_alike(
    const Negatives& negatives, acc_t factor, const acc_t* x, int64_t n, bool within, acc_t* values, acc_t* gradient) {
  const auto with = [&]<class AnyMath>(AnyMath, const auto& any) {
    // By value: behind a pointer the compiler would have to reload them after every store.
    compute<kSideBySide<AnyMath>>(n, [factor, x, negatives = any](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const ValueAndGradient<acc_t> term = negatives.template negative<AnyMath>(x[i]);
      return ValueAndGradient<acc_t>{term.value, factor * term.gradient};
    }, values, gradient);
  };
  if (!within) return with(Math(), negatives);
  using Within = typename within_limit<Math>::type;
  if constexpr (within_limit<Math>::is_cheaper && requires { negatives.as_constant(); })
    if (gradient && negatives.modulator.slope_.full == 0) return with(Within(), negatives.as_constant());
  with(Within(), negatives);
}

// Negatives with factors of their own.
template <class Math, class Negatives, class acc_t>
FOCAL_EXT_ONE_COPY void compute_varied(
    const Negatives& negatives, const Block<acc_t>& b, int64_t n, acc_t* values, acc_t* gradient) {
  compute<kSideBySide<Math>>(n, [&b, negatives](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
    const ValueAndGradient<acc_t> term = negatives.template negative<Math>(b.x[i]);
    return ValueAndGradient<acc_t>{b.value[i] * term.value, b.gradient[i] * term.gradient};
  }, values, gradient);
}

template <class Math, class Loss>
class Elements {
  using Negatives = decltype(negatives_of(*static_cast<const Loss*>(nullptr)));
  using NegativeMath = typename math_of<Math, Negatives>::type;

 public:
  using acc_t = typename Math::value_t;
  static constexpr bool has_halves = sizeof(acc_t) == sizeof(float);  // logits may be of a half type

  Elements(const Problem& problem, const Loss& loss, const Common& common)
      : p_(problem), loss_(loss), scale_(common.scale), is_half_(is_half(problem.scalar)) {}

  // Block [first, first + kBlock) of the table of all half-precision logits.
  void tabulate(int64_t first, Entry* table) const {
    uint16_t bits[kBlock];
    for (int64_t i = 0; i < kBlock; ++i) bits[i] = uint16_t(first + i);
    acc_t x[kBlock], values[kBlock], gradient[kBlock];
    load_block(bits, p_.scalar, 0, kBlock, x);
    compute_uniform(x, kBlock, is_within(acc_t(NegativeMath::limit()), x, kBlock), values, gradient);
    if (p_.loss_map) multiply(values, kBlock, acc_t(p_.alpha_negative));
    store_block(p_.loss_map ? values : gradient, kBlock, bits, p_.scalar, 0);
    for (int64_t i = 0; i < kBlock; ++i) table[first + i] = {float(values[i]), bits[i]};
  }

  using Both = ValueAndGradient<acc_t>;

  // Negatives with one factor for all: the hot path, and nearly every element of a detector. Returns the sum of losses.
  FOCAL_EXT_ONE_COPY double uniform(const acc_t* x, int64_t begin, int64_t n, Specials<acc_t>* specials) const {
    const bool within = within_limit<NegativeMath>::is_cheaper && is_within_limit(x, begin, n);
    return emit(begin, n, [&](acc_t* values, acc_t* gradient) { compute_uniform(x, n, within, values, gradient); },
        acc_t(p_.alpha_negative), specials);
  }

  // Negatives with factors of their own.
  FOCAL_EXT_ONE_COPY double varied(const Block<acc_t>& b, int64_t begin, int64_t n, Specials<acc_t>* specials) const {
    return emit(begin, n, [&](acc_t* values, acc_t* gradient) {
      compute_varied<NegativeMath>(negatives_of(loss_), b, n, values, gradient);
    }, acc_t(1), specials);
  }

  FOCAL_EXT_ONE_COPY double dense(const Block<acc_t>& b, int64_t begin, int64_t n) const {
    return emit(
        begin, n, [&](acc_t* values, acc_t* gradient) { compute_dense(b, n, values, gradient); }, acc_t(1), nullptr);
  }

  // Writes the positives of a block whose other elements are looked up. Returns the sum of all.
  FOCAL_EXT_ONE_COPY double finish(LookedUp& block, Specials<acc_t>& s, int64_t n) const {
    block.negatives_until(n);
    const Block<acc_t>& b = s.positives;
    if (s.count) compute_positives(s);
    double total = p_.alpha_negative * block.total;
    for (int64_t i = 0; i < s.count; ++i) total += double(b.value[i]);
    uint16_t bits[kBlock];
    if (block.to) store_block(p_.gradient ? b.gradient : b.value, s.count, bits, p_.scalar, 0);
    for (int64_t i = 0; block.to && i < s.count; ++i) block.to[s.at[i]] = bits[i];
    return p_.loss ? total : 0;
  }

 private:
  // bf16 is looked at as it lies in memory: twice as many logits an instruction.
  bool is_within_limit(const acc_t* x, int64_t begin, int64_t n) const {
    if (p_.scalar != Scalar::bf16) return is_within(acc_t(NegativeMath::limit()), x, whole_steps(n));
    BFloat16 limit;
    store(limit, float(NegativeMath::limit()));
    return is_within(limit, static_cast<const BFloat16*>(p_.inputs) + begin, n);
  }

  void compute_uniform(const acc_t* x, int64_t n, bool within, acc_t* values, acc_t* gradient) const {
    compute_alike<NegativeMath>(negatives_of(loss_), acc_t(p_.alpha_negative * scale_), x, n, within, values, gradient);
  }

  // Lets `terms` fill in n elements, puts the specials in their places, and writes what is wanted. The losses' common
  // factor is left to their sum.
  template <class Terms>
  FOCAL_EXT_INLINE double emit(int64_t begin, int64_t n, Terms&& terms, acc_t factor, Specials<acc_t>* specials) const {
    alignas(64) acc_t values[kBlock], buffer[kBlock];  // whole lines of the cache: 1.5 % of bf16
    const bool direct = !is_half_ && n % kStep == 0;
    acc_t* const gradient = !p_.gradient ? nullptr : direct ? static_cast<acc_t*>(p_.gradient) + begin : buffer;
    terms(values, gradient);
    if (p_.loss_map) multiply(values, n, factor);
    const double others = specials ? put(*specials, values, gradient) : 0;
    if (gradient && !direct) store_block(gradient, n, p_.gradient, p_.scalar, begin);
    if (p_.loss_map) store_block(values, n, p_.loss_map, p_.scalar, begin);
    return p_.loss ? double(factor) * sum(values, n) + others : 0;
  }

  FOCAL_EXT_ONE_COPY void compute_dense(const Block<acc_t>& b, int64_t n, acc_t* values, acc_t* gradient) const {
    compute<false>(n, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const Both term = loss.template dense<Math>(b.x[i], b.t[i]);
      return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
    }, values, gradient);
  }

  // The positives, side by side.
  FOCAL_EXT_ONE_COPY void compute_positives(Specials<acc_t>& s) const {
    Block<acc_t>& b = s.positives;
    const Loss loss = loss_;
    b.pad(s.count);
    for (int64_t at = 0; at < s.count; at += kStep)
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i) {
        const Both term = loss.template positive<Math>(b.x[i], b.t[i]);
        b.value[i] *= term.value;
        b.gradient[i] *= term.gradient;
      }
  }

  FOCAL_EXT_ONE_COPY double put(Specials<acc_t>& s, acc_t* values, acc_t* gradient) const {
    if (s.steps) compute_dense(s.positives, s.steps * kStep, s.positives.value, s.positives.gradient);
    else compute_positives(s);
    return put_in_place(s, p_.loss_map, values, gradient);
  }

  const Problem& p_;
  const Loss& loss_;
  const double scale_;
  const bool is_half_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

// Owns: the loop over one chunk of logits: load, formula, store, sum. Compiled once per instruction set (FOCAL_EXT_LEVEL names it).
// Must not know: threads, tensors, and the standard library (see storage.h).
#include "kernels.h"

#include "../losses/list.h"
#include "storage.h"

// A term that is called instead of inlined is a loop that does not vectorise: eight times slower.
#define FOCAL_EXT_INLINE_LAMBDA __attribute__((always_inline))

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

constexpr int64_t kBlock = 512;  // three buffers of it stay in the first-level cache
constexpr int64_t kLanes = 16;   // partial sums per block, the same at every vector width
constexpr int64_t kStep = 32;    // formulas run over whole steps of padded blocks: no loop has a remainder, which halves the library

constexpr int64_t whole_steps(int64_t n) { return (n + kStep - 1) / kStep * kStep; }

// A block whose elements differ: dense targets, ignored rows, weights, per-class alpha, an upstream gradient map.
template <class acc_t>
struct Block {
  acc_t x[kBlock];
  acc_t t[kBlock];         // dense targets
  acc_t value[kBlock];     // factor of the loss
  acc_t gradient[kBlock];  // factor of the derivative, scale included

  void pad(int64_t n) {
    for (int64_t i = n; i < whole_steps(n); ++i) x[i] = t[i] = value[i] = gradient[i] = 0;
  }
};

// The positives among the class ids of a block, which is computed as if it had none.
template <class acc_t>
struct Positives : Block<acc_t> {
  int64_t count = 0;
  int64_t at[kBlock];  // place in the block
};

template <class acc_t>
double sum(const acc_t* values, int64_t n) {
  acc_t lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += values[i + lane];
  double total = 0;
  for (int64_t lane = 0; lane < kLanes; ++lane) total += double(lanes[lane]);
  for (; i < n; ++i) total += double(values[i]);
  return total;
}

// Formulas see blocks of float or double only: half types are widened and rounded here, a block at a time, which costs less than
// the instructions that packing them inside the formula's loop would, and instantiates no loss twice.
template <class acc_t, class scalar_t>
void widen(const scalar_t* from, int64_t n, acc_t* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = acc_t(load(from[i]));
  for (int64_t i = n; i < whole_steps(n); ++i) to[i] = 0;
}
template <class acc_t, class scalar_t>
void narrow(const acc_t* from, int64_t n, acc_t factor, scalar_t* to) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) store(to[i], factor * from[i]);
}

// Elements [begin, begin + n) of a tensor of logits' type, in place if they are whole steps of acc_t, else in `buffer`.
template <class acc_t>
const acc_t* load_block(const void* tensor, Scalar scalar, int64_t begin, int64_t n, acc_t* buffer) {
  if (scalar == Scalar::bf16) widen(static_cast<const BFloat16*>(tensor) + begin, n, buffer);
  else if (scalar == Scalar::f16) widen(static_cast<const Float16*>(tensor) + begin, n, buffer);
  else if (n % kStep == 0) return static_cast<const acc_t*>(tensor) + begin;
  else widen(static_cast<const acc_t*>(tensor) + begin, n, buffer);
  return buffer;
}

template <class acc_t>
void store_block(const acc_t* values, int64_t n, acc_t factor, void* tensor, Scalar scalar, int64_t begin) {
  if (scalar == Scalar::bf16) narrow(values, n, factor, static_cast<BFloat16*>(tensor) + begin);
  else if (scalar == Scalar::f16) narrow(values, n, factor, static_cast<Float16*>(tensor) + begin);
  else narrow(values, n, factor, static_cast<acc_t*>(tensor) + begin);
}

template <class Math, class Loss>
class Chunk {
  using acc_t = typename Math::value_t;
  using Both = ValueAndGradient<acc_t>;

 public:
  Chunk(const Problem& problem, const Loss& loss, double scale)
      : p_(problem), loss_(loss), scale_(scale), is_half_(problem.scalar == Scalar::bf16 || problem.scalar == Scalar::f16), alpha_(static_cast<const acc_t*>(problem.alpha)), weight_(static_cast<const acc_t*>(problem.weight)),
        uniform_(!problem.alpha && !problem.weight && !problem.grad_output_per_element && problem.alpha_negative != 0) {}

  double run(int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t at = begin; at < end; at += kBlock) total += block(at, end - at < kBlock ? end - at : kBlock);
    return total;
  }

 private:
  double block(int64_t begin, int64_t n) {
    acc_t buffer[kBlock];
    const acc_t* const x = load_block(p_.inputs, p_.scalar, begin, n, buffer);
    const auto as_they_are = [](acc_t*, acc_t*) {};
    if (is_negative(begin, n)) {
      const acc_t factor = acc_t(p_.alpha_negative * scale_);
      // By value: behind a pointer the compiler would have to reload them after every store.
      return emit(begin, n, p_.alpha_negative, [factor, x, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
        const Both term = loss.template negative<Math>(x[i]);
        return Both{term.value, factor * term.gradient};
      }, as_they_are);
    }
    Block<acc_t> b;
    if (is_dense(p_.target)) {
      fill_dense(b, x, begin, n);
      b.pad(n);
      return emit(begin, n, 1, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
        const Both term = loss.template dense<Math>(b.x[i], b.t[i]);
        return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
      }, as_they_are);
    }
    Positives<acc_t> positives;
    fill_ids(b, positives, x, begin, n);
    b.pad(n);
    return emit(begin, n, 1, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const Both term = loss.template negative<Math>(b.x[i]);
      return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
    }, [&](acc_t* values, acc_t* gradient) { put(positives, values, gradient); });
  }

  // Applies `term` to n elements, lets `correct` replace some, and writes what is wanted: losses times `factor`. Gradients are
  // computed when they are stored, and only then.
  template <class Term, class Correct>
  double emit(int64_t begin, int64_t n, double factor, Term term, Correct correct) {
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
    correct(values, gradient);
    if (gradient && !direct) store_block(gradient, n, acc_t(1), p_.gradient, p_.scalar, begin);
    if (p_.loss_map) store_block(values, n, acc_t(factor), p_.loss_map, p_.scalar, begin);
    return p_.loss ? factor * sum(values, n) : 0;
  }

  // Computes the positives side by side, then puts each in its place.
  void put(Positives<acc_t>& b, acc_t* values, acc_t* gradient) const {
    const Loss loss = loss_;
    b.pad(b.count);
    for (int64_t at = 0; at < b.count; at += kStep)
#pragma omp simd
      for (int64_t i = at; i < at + kStep; ++i) {
        const Both term = loss.template positive<Math>(b.x[i], b.t[i]);
        b.value[i] *= term.value;
        b.gradient[i] *= term.gradient;
      }
    for (int64_t i = 0; i < b.count; ++i) {
      values[b.at[i]] = b.value[i];
      if (gradient) gradient[b.at[i]] = b.gradient[i];
    }
  }

  // True when every element is a negative with the same factor: the hot path, and nearly every block of a detector.
  bool is_negative(int64_t begin, int64_t n) const {
    if (!uniform_) return false;
    if (p_.target == Target::dense_u8) return is_zero(static_cast<const uint8_t*>(p_.targets) + begin, n);
    if (p_.target == Target::dense_scalar && p_.scalar == Scalar::bf16) return is_zero(static_cast<const BFloat16*>(p_.targets) + begin, n);
    if (p_.target == Target::dense_scalar && p_.scalar == Scalar::f16) return is_zero(static_cast<const Float16*>(p_.targets) + begin, n);
    if (is_dense(p_.target)) return is_zero(static_cast<const acc_t*>(p_.targets) + begin, n);
    for (int64_t row = begin / p_.classes; row <= (begin + n - 1) / p_.classes; ++row)
      if (row_kind(p_, label_at(p_, row)) != Row::background) return false;
    return true;
  }

  template <class target_t>
  static bool is_zero(const target_t* t, int64_t n) {
    int nonzero = 0;
#pragma omp simd reduction(| : nonzero)
    for (int64_t i = 0; i < n; ++i) nonzero |= !(load(t[i]) == 0);  // NaN is not zero
    return !nonzero;
  }

  acc_t weight(int64_t row, int64_t c) const { return weight_ ? weight_[row * p_.weight_row_stride + c * p_.weight_class_stride] : acc_t(1); }

  // A logit whose alpha is 0 contributes 0 also where the loss is infinite.
  static acc_t finite(acc_t z) { return z > acc_t(3e38) ? acc_t(3e38) : z < acc_t(-3e38) ? acc_t(-3e38) : z; }

  // Calls f(row, first class, one past the last, offset in the block) for each row's part of the block.
  template <class F>
  void each_row(int64_t begin, int64_t n, F f) const {
    int64_t row = begin / p_.classes, c = begin - row * p_.classes;
    for (int64_t at = 0; at < n; ++row, c = 0) {
      const int64_t end = c + (n - at) < p_.classes ? c + (n - at) : p_.classes;
      f(row, c, end, at - c);
      at += end - c;
    }
  }

  // Element (row, c), which has the logit x, the target t and the upstream factor, as entry i of the block.
  void fill(Block<acc_t>& b, int64_t i, int64_t row, int64_t c, acc_t x, acc_t t, acc_t upstream) const {
    const acc_t of_one = alpha_ ? alpha_[c] : acc_t(p_.alpha_positive), of_zero = alpha_ ? acc_t(1) - alpha_[c] : acc_t(p_.alpha_negative);
    const acc_t a = Loss::factor(t, of_one, of_zero);
    b.x[i] = a == 0 ? finite(x) : x;
    b.t[i] = t;
    b.value[i] = a * weight(row, c);
    b.gradient[i] = b.value[i] * upstream;
  }

  // What the derivatives of a block are multiplied by.
  struct Upstream {
    acc_t buffer[kBlock];
    const acc_t* map;
    acc_t scale;
    Upstream(const Problem& p, double scale, int64_t begin, int64_t n)
        : map(p.grad_output_per_element ? load_block(p.grad_output, p.scalar, begin, n, buffer) : nullptr), scale(acc_t(scale)) {}
    acc_t operator[](int64_t i) const { return map ? scale * map[i] : scale; }
  };

  void fill_ids(Block<acc_t>& b, Positives<acc_t>& positives, const acc_t* x, int64_t begin, int64_t n) const {
    const acc_t* const scores = static_cast<const acc_t*>(p_.scores);
    const Upstream upstream(p_, scale_, begin, n);
    each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
      const int64_t label = label_at(p_, row);
      const Row kind = row_kind(p_, label);
      if (kind == Row::ignored || kind == Row::bad) {
        const acc_t factor = kind == Row::bad ? acc_t(__builtin_nan("")) : acc_t(0);
        for (int64_t i = offset + first; i < offset + last; ++i) b.x[i] = 0, b.value[i] = b.gradient[i] = factor;
        return;
      }
      for (int64_t c = first; c < last; ++c) fill(b, offset + c, row, c, x[offset + c], 0, upstream[offset + c]);
      if (kind == Row::positive && first <= label && label < last) {
        const int64_t at = offset + label;
        fill(positives, positives.count, row, label, x[at], scores ? scores[row] : acc_t(1), upstream[at]);
        positives.at[positives.count++] = at;
      }
    });
  }

  void fill_dense(Block<acc_t>& b, const acc_t* x, int64_t begin, int64_t n) const {
    acc_t buffer[kBlock];
    const acc_t* t = buffer;
    if (p_.target == Target::dense_u8) widen(static_cast<const uint8_t*>(p_.targets) + begin, n, buffer);
    else t = load_block(p_.targets, p_.target == Target::dense_acc ? Scalar::f32 : p_.scalar, begin, n, buffer);
    const Upstream upstream(p_, scale_, begin, n);
    each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
      for (int64_t c = first; c < last; ++c) fill(b, offset + c, row, c, x[offset + c], t[offset + c], upstream[offset + c]);
    });
  }

  const Problem& p_;
  const Loss& loss_;
  const double scale_;
  const bool is_half_;
  const acc_t* const alpha_;
  const acc_t* const weight_;
  const bool uniform_;
};

template <class Math, bool fast>
double run_as(const Problem& problem, int64_t begin, int64_t end, double scale) {
  return with_loss<fast>(problem.loss_parameters, [&]<class Loss>(const Loss& loss) {
    return Chunk<Math, Loss>(problem, loss, scale).run(begin, end);
  });
}

}  // namespace

double run_chunk(const Problem& problem, int64_t index, double scale) {
  const int64_t begin = index * kChunk, rest = numel(problem) - begin, end = begin + (rest < kChunk ? rest : kChunk);
  // fp64 is the accurate path, not the fast one: few instances serve every parameter.
  if (problem.scalar == Scalar::f64) return run_as<Double, false>(problem, begin, end, scale);
  return run_as<HostFloat, true>(problem, begin, end, scale);
}

}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

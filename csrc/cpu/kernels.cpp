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

template <class acc_t> struct math_of { using type = HostFloat; };
template <> struct math_of<double> { using type = Double; };

// A block whose elements differ: dense targets, ignored rows, weights, per-class alpha, an upstream gradient map.
template <class acc_t>
struct Block {
  acc_t x[kBlock];
  acc_t t[kBlock];         // dense targets
  acc_t value[kBlock];     // factor of the loss
  acc_t gradient[kBlock];  // factor of the derivative, scale included
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

template <class scalar_t, class Loss>
class Chunk {
  using acc_t = typename accumulate<scalar_t>::type;
  using Math = typename math_of<acc_t>::type;
  using Both = ValueAndGradient<acc_t>;

 public:
  Chunk(const Problem& problem, const Loss& loss, double scale)
      : p_(problem), loss_(loss), scale_(scale), inputs_(static_cast<const scalar_t*>(problem.inputs)),
        alpha_(static_cast<const acc_t*>(problem.alpha)), weight_(static_cast<const acc_t*>(problem.weight)),
        uniform_(!problem.alpha && !problem.weight && !problem.grad_output_per_element && problem.alpha_negative != 0) {}

  double run(int64_t begin, int64_t end) {
    double total = 0;
    for (int64_t at = begin; at < end; at += kBlock) total += block(at, end - at < kBlock ? end - at : kBlock);
    return total;
  }

 private:
  double block(int64_t begin, int64_t n) {
    const auto as_they_are = [](acc_t*, scalar_t*) {};
    if (is_negative(begin, n)) {
      const acc_t factor = acc_t(p_.alpha_negative * scale_);
      // By value: behind a pointer the compiler would have to reload them after every store.
      return emit(begin, n, p_.alpha_negative, [factor, inputs = inputs_ + begin, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
        const Both term = loss.template negative<Math>(acc_t(load(inputs[i])));
        return Both{term.value, factor * term.gradient};
      }, as_they_are);
    }
    Block<acc_t> b;
    if (is_dense(p_.target)) {
      fill_dense(b, begin, n);
      return emit(begin, n, 1, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
        const Both term = loss.template dense<Math>(b.x[i], b.t[i]);
        return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
      }, as_they_are);
    }
    Positives<acc_t> positives;
    fill_ids(b, positives, begin, n);
    return emit(begin, n, 1, [&b, loss = loss_](int64_t i) FOCAL_EXT_INLINE_LAMBDA {
      const Both term = loss.template negative<Math>(b.x[i]);
      return Both{b.value[i] * term.value, b.gradient[i] * term.gradient};
    }, [&](acc_t* values, scalar_t* gradient) { put(positives, values, gradient); });
  }

  // Applies `term` to n elements, lets `correct` replace some, and writes what is wanted: losses times `factor`. Gradients are
  // computed when they are stored, and only then.
  template <class Term, class Correct>
  double emit(int64_t begin, int64_t n, double factor, Term term, Correct correct) {
    acc_t values[kBlock];
    scalar_t* const gradient = p_.gradient ? static_cast<scalar_t*>(p_.gradient) + begin : nullptr;
    if (gradient) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) {
        const Both both = term(i);
        values[i] = both.value;
        store(gradient[i], both.gradient);
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) values[i] = term(i).value;
    }
    correct(values, gradient);
    if (p_.loss_map) {
      scalar_t* map = static_cast<scalar_t*>(p_.loss_map) + begin;
      const acc_t map_factor = acc_t(factor);
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store(map[i], map_factor * values[i]);
    }
    return p_.loss ? factor * sum(values, n) : 0;
  }

  // Computes the positives side by side, then puts each in its place.
  void put(Positives<acc_t>& b, acc_t* values, scalar_t* gradient) const {
    const Loss loss = loss_;
#pragma omp simd
    for (int64_t i = 0; i < b.count; ++i) {
      const Both term = loss.template positive<Math>(b.x[i], b.t[i]);
      b.value[i] *= term.value;
      b.gradient[i] *= term.gradient;
    }
    for (int64_t i = 0; i < b.count; ++i) {
      values[b.at[i]] = b.value[i];
      if (gradient) store(gradient[b.at[i]], b.gradient[i]);
    }
  }

  // True when every element is a negative with the same factor: the hot path, and nearly every block of a detector.
  bool is_negative(int64_t begin, int64_t n) const {
    if (!uniform_) return false;
    if (p_.target == Target::dense_u8) return is_zero(static_cast<const uint8_t*>(p_.targets) + begin, n);
    if (p_.target == Target::dense_scalar) return is_zero(static_cast<const scalar_t*>(p_.targets) + begin, n);
    if (p_.target == Target::dense_acc) return is_zero(static_cast<const acc_t*>(p_.targets) + begin, n);
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

  // What the derivative of element i of the whole tensor is multiplied by.
  acc_t upstream(int64_t i) const {
    return p_.grad_output_per_element ? acc_t(scale_) * load(static_cast<const scalar_t*>(p_.grad_output)[i]) : acc_t(scale_);
  }

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

  // Element (row, c) at `begin + place`, with the target t, as entry i of the block.
  void fill(Block<acc_t>& b, int64_t i, int64_t begin, int64_t place, int64_t row, int64_t c, acc_t t) const {
    const acc_t of_one = alpha_ ? alpha_[c] : acc_t(p_.alpha_positive), of_zero = alpha_ ? acc_t(1) - alpha_[c] : acc_t(p_.alpha_negative);
    const acc_t a = Loss::factor(t, of_one, of_zero), x = load(inputs_[begin + place]);
    b.x[i] = a == 0 ? finite(x) : x;
    b.t[i] = t;
    b.value[i] = a * weight(row, c);
    b.gradient[i] = b.value[i] * upstream(begin + place);
  }

  void fill_ids(Block<acc_t>& b, Positives<acc_t>& positives, int64_t begin, int64_t n) const {
    const acc_t* const scores = static_cast<const acc_t*>(p_.scores);
    each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
      const int64_t label = label_at(p_, row);
      const Row kind = row_kind(p_, label);
      if (kind == Row::ignored || kind == Row::bad) {
        const acc_t factor = kind == Row::bad ? acc_t(__builtin_nan("")) : acc_t(0);
        for (int64_t c = first; c < last; ++c) b.x[offset + c] = 0, b.value[offset + c] = b.gradient[offset + c] = factor;
        return;
      }
      for (int64_t c = first; c < last; ++c) fill(b, offset + c, begin, offset + c, row, c, 0);
      if (kind == Row::positive && first <= label && label < last) {
        positives.at[positives.count] = offset + label;
        fill(positives, positives.count++, begin, offset + label, row, label, scores ? scores[row] : acc_t(1));
      }
    });
  }

  void fill_dense(Block<acc_t>& b, int64_t begin, int64_t n) const {
    if (p_.target == Target::dense_u8) load_targets(b, static_cast<const uint8_t*>(p_.targets) + begin, n);
    else if (p_.target == Target::dense_scalar) load_targets(b, static_cast<const scalar_t*>(p_.targets) + begin, n);
    else load_targets(b, static_cast<const acc_t*>(p_.targets) + begin, n);
    each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
      for (int64_t c = first; c < last; ++c) fill(b, offset + c, begin, offset + c, row, c, b.t[offset + c]);
    });
  }

  template <class target_t>
  static void load_targets(Block<acc_t>& b, const target_t* t, int64_t n) {
    for (int64_t i = 0; i < n; ++i) b.t[i] = load(t[i]);
  }

  const Problem& p_;
  const Loss& loss_;
  const double scale_;
  const scalar_t* const inputs_;
  const acc_t* const alpha_;
  const acc_t* const weight_;
  const bool uniform_;
};

template <class scalar_t>
double run_scalar(const Problem& problem, int64_t begin, int64_t end, double scale) {
  // fp64 is the accurate path, not the fast one: few instances serve every parameter.
  return with_loss<sizeof(scalar_t) < 8>(problem.loss_parameters, [&]<class Loss>(const Loss& loss) {
    return Chunk<scalar_t, Loss>(problem, loss, scale).run(begin, end);
  });
}

}  // namespace

double run_chunk(const Problem& problem, int64_t index, double scale) {
  const int64_t begin = index * kChunk, rest = numel(problem) - begin, end = begin + (rest < kChunk ? rest : kChunk);
  switch (problem.scalar) {
    case Scalar::f64: return run_scalar<double>(problem, begin, end, scale);
    case Scalar::bf16: return run_scalar<BFloat16>(problem, begin, end, scale);
    case Scalar::f16: return run_scalar<Float16>(problem, begin, end, scale);
    default: return run_scalar<float>(problem, begin, end, scale);
  }
}

}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

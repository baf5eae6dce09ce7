// Owns: the softmax loss of rows with class ids, a batch of rows at a time, and the softmax kernels' entry points.
// Compiled once per instruction set.
// Must not know: threads, tensors, and the standard library (see storage.h).
#include "softmax_dense.h"
#include "softmax_dense_planes.h"
#include "softmax_id_planes.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

constexpr int64_t kBatch = 128;

// Neighbouring rows whose exponentials fit; or a part of one longer row, whose exponentials are computed again for the
// gradient. One simd loop runs over the exponentials, and one over the rows: one row's formula after another's would be
// a chain of dependent steps.
template <class acc_t>
struct Batch : RowTerms<acc_t> {
  int64_t label[kBatch];  // -1: no logit of the row is read
  acc_t e[kExponentials];
};

template <class scalar_t>
class IdRows : SoftmaxRows<scalar_t> {
  using Base = SoftmaxRows<scalar_t>;
  using typename Base::acc_t;
  using typename Base::Math;
  using Base::classes_;
  using Base::p_;
  using Base::smoothing_;

 public:
  IdRows(const Problem& problem, double scale) : Base(problem, scale) {}

  double run(int64_t first, int64_t last) const {
    const int64_t fitting = kExponentials / (classes_ > 0 ? classes_ : 1);
    const int64_t rows = fitting < 1 ? 1 : fitting < kBatch ? fitting : kBatch;
    Batch<acc_t> b;
    double total = 0;
    for (int64_t row = first; row < last; row += rows) total += batch(b, row, last - row < rows ? last - row : rows);
    return total;
  }

 private:
  double batch(Batch<acc_t>& b, int64_t first, int64_t rows) const {
    double sums[kBatch] = {};
    for (int64_t r = 0; r < rows; ++r) open(b, r, first + r);
    each_part(rows, [&](int64_t c, int64_t n) {
      exponentials(b, first, rows, c, n);
      for (int64_t r = 0; r < rows; ++r) sums[r] += sum_of<acc_t>(n, [e = b.e + r * n](int64_t i) { return e[i]; });
    });
    for (int64_t r = 0; r < rows; ++r) b.others[r] = acc_t(sums[r]);
    compute_terms(b, rows, p_);
    double total = 0;
    for (int64_t r = 0; r < rows; ++r) {
      const acc_t value = b.label[r] < 0 ? b.value_factor[r] : b.value_factor[r] * b.value[r];
      if (p_.loss_map) store(static_cast<scalar_t*>(p_.loss_map)[first + r], value);
      total += double(value);
    }
    if (p_.gradient)
      each_part(rows, [&](int64_t c, int64_t n) {
        if (n < classes_) exponentials(b, first, rows, c, n);
        for (int64_t r = 0; r < rows; ++r) put(b, r, first + r, c, n);
      });
    return total;
  }

  // Calls f(first class, number of classes) for the parts of rows whose exponentials fit: one part but for a long row.
  template <class F>
  void each_part(int64_t rows, F f) const {
    if (rows * classes_ <= kExponentials) return f(0, classes_);
    for (int64_t c = 0; c < classes_; c += kExponentials)
      f(c, classes_ - c < kExponentials ? classes_ - c : kExponentials);
  }

  // Everything about a row that needs no exponential.
  void open(Batch<acc_t>& b, int64_t r, int64_t row) const {
    const int64_t label = label_at(p_, row);
    const Row kind = row_kind(p_, label);
    b.label[r] = kind == Row::positive ? label : -1;
    b.top[r] = b.own[r] = b.distance[r] = b.mean_distance[r] = 0;
    if (kind != Row::positive) {
      b.value_factor[r] = b.gradient_factor[r] = kind == Row::ignored ? acc_t(0) : acc_t(__builtin_nan(""));
      return;
    }
    const scalar_t* const x = this->row_at(row);
    const acc_t alpha = this->alpha(label), top = this->largest(x, classes_), own = load(x[label]);
    b.top[r] = top;
    b.distance[r] = this->finite_if(alpha == 0, own == top ? acc_t(0) : top - own);
    if (smoothing_ != 0) b.mean_distance[r] = this->finite_if(alpha == 0, this->mean_distance(x, top));
    b.value_factor[r] = alpha * this->weight(row) * this->defined(x, classes_, top);
    b.gradient_factor[r] = b.value_factor[r] * this->upstream(row);
  }

  // Those of classes [c, c + n) of each row, that of its label taken out.
  void exponentials(Batch<acc_t>& b, int64_t first, int64_t rows, int64_t c, int64_t n) const {
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t i = 0; i < n; ++i) b.e[r * n + i] = b.top[r];
    Base::exponentials(this->row_at(first) + c, b.e, rows * n);
    for (int64_t r = 0; r < rows; ++r) {
      acc_t* const e = b.e + r * n;
      const int64_t y = b.label[r] - c;
      if (y >= 0 && y < n) b.own[r] = e[y], e[y] = 0;
    }
  }

  void put(const Batch<acc_t>& b, int64_t r, int64_t row, int64_t c, int64_t n) const {
    scalar_t* const gradient = static_cast<scalar_t*>(p_.gradient) + row * classes_ + c;
    const acc_t* const e = b.e + r * n;
    const acc_t factor = b.gradient_factor[r];
    if (b.label[r] < 0) {
      for (int64_t i = 0; i < n; ++i) store(gradient[i], factor);
      return;
    }
    const acc_t others = factor * b.of_others[r], shift = factor * b.shift[r];
    if (smoothing_ == 0) {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store(gradient[i], others * e[i]);
    } else {
#pragma omp simd
      for (int64_t i = 0; i < n; ++i) store(gradient[i], others * e[i] - shift);
    }
    const int64_t y = b.label[r] - c;
    if (y >= 0 && y < n) store(gradient[y], factor * b.of_own[r]);
  }
};

template <class scalar_t>
double run_scalar(const Problem& problem, int64_t first, int64_t last, const Common& common) {
  if (is_dense(problem.target)) return DenseRows<scalar_t>(problem, common).run(first, last);
  return IdRows<scalar_t>(problem, common.scale).run(first, last);
}

template <class acc_t>
double run_planes(const Problem& problem, const Strip& strip, const Common& common) {
  if (is_dense(problem.target)) return DensePlanes<acc_t>(problem, strip, common).run();
  return run_id_planes<acc_t>(problem, strip, common);
}

}  // namespace

double run_row_strip(const Problem& problem, const Strip& strip, const Common& common) {
  if (problem.scalar == Scalar::f64) return run_planes<double>(problem, strip, common);
  return run_planes<float>(problem, strip, common);
}

double run_rows(const Problem& problem, int64_t index, const Common& common) {
  const int64_t rows = rows_of_chunk(problem.classes), first = index * rows, rest = problem.rows - first,
                last = first + (rest < rows ? rest : rows);
  switch (problem.scalar) {
    case Scalar::f64: return run_scalar<double>(problem, first, last, common);
    case Scalar::bf16: return run_scalar<BFloat16>(problem, first, last, common);
    case Scalar::f16: return run_scalar<Float16>(problem, first, last, common);
    default: return run_scalar<float>(problem, first, last, common);
  }
}

}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

// Owns: chunks, their order of summation, the divisor and the choice of the instruction set.
// Must not know: torch, and any formula.
#include "run.h"

#include <algorithm>
#include <memory>

#include "kernels.h"
#include "level.h"
#include "storage.h"

namespace focal_ext::cpu {
namespace {

int level_index() {
  static const int index = detect_level();
  return index;
}

ChunkKernel chunk_kernel() {
#if defined(__x86_64__)
  static constexpr ChunkKernel kernels[] = {baseline::run_chunk, x86_64_v3::run_chunk, x86_64_v4::run_chunk};
  return kernels[level_index()];
#else
  return baseline::run_chunk;
#endif
}

// Calls body(i) for i in [0, n), in the calling thread when there is one piece only.
template <class Body>
void parallel(ParallelFor parallel_for, int64_t n, Body&& body) {
  if (n == 1) return body(0);
  if (n > 0) parallel_for(n, [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

double read_acc(const void* value, Scalar scalar) {
  return scalar == Scalar::f64 ? *static_cast<const double*>(value) : double(*static_cast<const float*>(value));
}

// Rows that count for the divisor: positives, or every row that is not ignored.
int64_t count_rows(const Problem& problem, ParallelFor parallel_for) {
  const int64_t chunks = chunks_of(problem.rows);
  const std::unique_ptr<int64_t[]> counts(new int64_t[chunks]);
  parallel(parallel_for, chunks, [&](int64_t i) {
    int64_t count = 0;
    for (int64_t row = i * kChunk; row < std::min((i + 1) * kChunk, problem.rows); ++row) {
      const Row kind = row_kind(problem, label_at(problem, row));
      count += problem.divisor == Divisor::positives ? kind == Row::positive : kind != Row::ignored;
    }
    counts[i] = count;
  });
  int64_t total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += counts[i];
  return total;
}

double divisor_of(const Problem& problem, ParallelFor parallel_for) {
  switch (problem.divisor) {
    case Divisor::tensor: return read_acc(problem.divisor_tensor, problem.scalar);
    case Divisor::kept: return double(std::max<int64_t>(count_rows(problem, parallel_for) * problem.classes, 1));
    case Divisor::positives: return double(std::max<int64_t>(count_rows(problem, parallel_for), 1));
    default: return problem.divisor_value;
  }
}

template <class scalar_t>
void scale_chunk(void* gradient, int64_t begin, int64_t end, double factor) {
  using acc_t = typename accumulate<scalar_t>::type;
  scalar_t* g = static_cast<scalar_t*>(gradient);
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) store(g[i], acc_t(load(g[i]) * acc_t(factor)));
}

}  // namespace

const char* level() { return kLevels[level_index()]; }

void run(const Problem& problem, ParallelFor parallel_for) {
  const double divisor = divisor_of(problem, parallel_for);
  const double upstream =
      problem.grad_output && !problem.grad_output_per_element ? read_acc(problem.grad_output, problem.scalar) : 1.0;
  const int64_t chunks = chunks_of(numel(problem));
  const std::unique_ptr<double[]> sums(new double[chunks]);
  const ChunkKernel kernel = chunk_kernel();
  parallel(parallel_for, chunks, [&](int64_t i) { sums[i] = kernel(problem, i, upstream / divisor); });
  if (!problem.loss) return;
  double total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += sums[i];
  const double loss = chunks ? total / divisor : 0;  // nothing divided by nothing is 0 too
  if (problem.scalar == Scalar::f64) *static_cast<double*>(problem.loss) = loss;
  else *static_cast<float*>(problem.loss) = float(loss);
}

int64_t first_bad_id(const Problem& problem, ParallelFor parallel_for) {
  const int64_t chunks = chunks_of(problem.rows);
  const std::unique_ptr<int64_t[]> first(new int64_t[chunks]);
  parallel(parallel_for, chunks, [&](int64_t i) {
    first[i] = -1;
    for (int64_t row = i * kChunk; first[i] < 0 && row < std::min((i + 1) * kChunk, problem.rows); ++row)
      if (row_kind(problem, label_at(problem, row)) == Row::bad) first[i] = row;
  });
  for (int64_t i = 0; i < chunks; ++i)
    if (first[i] >= 0) return first[i];
  return -1;
}

void scale(void* gradient, Scalar scalar, int64_t numel, double factor, ParallelFor parallel_for) {
  if (factor == 1) return;
  parallel(parallel_for, chunks_of(numel), [&](int64_t i) {
    const int64_t begin = i * kChunk, end = std::min(begin + kChunk, numel);
    switch (scalar) {
      case Scalar::f64: return scale_chunk<double>(gradient, begin, end, factor);
      case Scalar::bf16: return scale_chunk<BFloat16>(gradient, begin, end, factor);
      case Scalar::f16: return scale_chunk<Float16>(gradient, begin, end, factor);
      default: return scale_chunk<float>(gradient, begin, end, factor);
    }
  });
}

}  // namespace focal_ext::cpu

// Owns: chunks, their order of summation, the divisor and the choice of the instruction set.
// Must not know: torch, and any formula.
#include "run.h"

#include <algorithm>
#include <initializer_list>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "kernels.h"
#include "level.h"
#include "storage.h"

namespace focal_ext::cpu {
namespace {

int level_index() {
  static const int index = detect_level();
  return index;
}

// The kernel of this machine's instruction set, of those for all.
template <class Kernel>
Kernel best(std::initializer_list<Kernel> kernels) {
  return kernels.begin()[level_index()];
}

#if defined(__x86_64__)
#define FOCAL_EXT_BEST(kernel) best({&baseline::kernel, &x86_64_v3::kernel, &x86_64_v4::kernel})
#else
#define FOCAL_EXT_BEST(kernel) best({&baseline::kernel})
#endif

// Calls body(i) for i in [0, n), in the calling thread when there is one piece only.
template <class Body>
void parallel(ParallelFor parallel_for, int64_t n, Body&& body) {
  if (n == 1) return body(0);
  if (n > 0) parallel_for(n, [](void* context, int64_t i) { (*static_cast<Body*>(context))(i); }, &body);
}

bool is_counted(const Problem& p) { return p.divisor == Divisor::kept || p.divisor == Divisor::positives; }

int64_t chunks_of(int64_t n) { return (n + kChunk - 1) / kChunk; }

double read_acc(const void* value, Scalar scalar) {
  return scalar == Scalar::f64 ? *static_cast<const double*>(value) : double(*static_cast<const float*>(value));
}

// Dense targets that are not ignored, of softmax losses rows.
int64_t count_dense(const Problem& problem, ParallelFor parallel_for) {
  const int64_t width = has_row_losses(problem) ? problem.classes : 1, units = problem.rows * problem.classes / std::max<int64_t>(width, 1);
  const int64_t size = std::max<int64_t>(kChunk / std::max<int64_t>(width, 1), 1), chunks = (units + size - 1) / size;
  const std::unique_ptr<int64_t[]> counts(new int64_t[chunks]);
  parallel(parallel_for, chunks, [&](int64_t chunk) {
    counts[chunk] = with_dense(problem, [&](const auto* t) {
      using acc_t = decltype(load(*t));
      const acc_t ignored = acc_t(ignored_target(problem));
      int64_t count = 0;
      for (int64_t i = chunk * size; i < std::min((chunk + 1) * size, units); ++i) {
        bool kept = true;
        for (int64_t c = 0; c < width; ++c) kept &= load(t[i * width + c]) != ignored;
        count += kept;
      }
      return count;
    });
  });
  int64_t total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += counts[i];
  return total;
}

// A negative id is large.
template <class Id>
uint64_t largest(const Id* ids, int64_t n) {
  using Unsigned = std::make_unsigned_t<Id>;
  Unsigned most = 0;
#pragma omp simd reduction(max : most)
  for (int64_t i = 0; i < n; ++i) most = Unsigned(ids[i]) > most ? Unsigned(ids[i]) : most;
  return most;
}

// Rows that count for the divisor: positives, or every row that is not ignored.
int64_t count_rows(const Problem& problem, ParallelFor parallel_for) {
  const bool positives = problem.divisor == Divisor::positives;
  if (!positives && !problem.has_ignore_index) return problem.rows;
  const int64_t ignored = problem.has_ignore_index ? problem.ignore_index : -1;  // which no positive is
  const uint64_t classes = uint64_t(problem.classes);
  const int64_t chunks = chunks_of(problem.rows);
  const std::unique_ptr<int64_t[]> counts(new int64_t[chunks]);
  parallel(parallel_for, chunks, [&](int64_t i) {
    counts[i] = with_ids(problem, [&](const auto* ids) {
      int64_t count = 0;
      for (int64_t row = i * kChunk; row < std::min((i + 1) * kChunk, problem.rows); ++row) {
        const int64_t label = widened(ids[row]);
        count += int64_t(label != ignored) & int64_t(!positives || uint64_t(label) < classes);
      }
      return count;
    });
  });
  int64_t total = 0;
  for (int64_t i = 0; i < chunks; ++i) total += counts[i];
  return total;
}

double divisor_of(const Problem& problem, ParallelFor parallel_for) {
  if (is_counted(problem) && is_dense(problem.target)) return double(std::max<int64_t>(count_dense(problem, parallel_for), 1));
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

// With a table 2^19 logits of bf16 take 215 us instead of 275 (two threads), of which it is about 50. Dense targets may have few blocks of zeros.
constexpr int64_t kTabulateAbove = 1 << 19, kTabulateDenseAbove = 1 << 22;

bool pays_to_tabulate(const Problem& p) {
  return is_half(p.scalar) && is_uniform(p) && !has_row_losses(p) && numel(p) >= (is_dense(p.target) ? kTabulateDenseAbove : kTabulateAbove);
}

// Null where it does not pay, or where there is no memory for it: then the formula computes every logit, and the sum is in its order.
std::unique_ptr<Entry[]> tabulate(const Problem& problem, double scale, ParallelFor parallel_for) {
  if (!pays_to_tabulate(problem)) return nullptr;
  std::unique_ptr<Entry[]> table(new (std::nothrow) Entry[kEntries]);
  if (!table) return nullptr;
  const TableKernel kernel = FOCAL_EXT_BEST(run_table);
  parallel(parallel_for, kEntries / kChunk, [&](int64_t i) { kernel(problem, i, scale, table.get()); });
  return table;
}

// Runs unit(i, what units have in common) for every i: units in any order, their sums in one.
template <class RunUnit>
double sum_of_units(const Problem& problem, int64_t units, double divisor, bool* has_ignored, ParallelFor parallel_for, RunUnit&& unit) {
  const double upstream = problem.grad_output && !problem.grad_output_per_element ? read_acc(problem.grad_output, problem.scalar) : 1.0;
  const std::unique_ptr<Entry[]> table = tabulate(problem, upstream / divisor, parallel_for);
  const Common common = {upstream / divisor, table.get(), has_ignored};
  const std::unique_ptr<double[]> sums(new double[units]);
  parallel(parallel_for, units, [&](int64_t i) { sums[i] = unit(i, common); });
  double total = 0;
  for (int64_t i = 0; i < units; ++i) total += sums[i];
  return total;
}

// Nearly always all targets are kept, and to count them first would cost a pass over them: that none is ignored is taken for granted, and
// where one is the pass is made again. Not of bytes, which hold the number only if somebody chose it, and not where the logits are overwritten.
bool presumes_all_kept(const Problem& p) { return is_counted(p) && is_dense(p.target) && p.target != Target::dense_u8 && p.gradient != p.inputs; }

template <class RunUnit>
void run_units(const Problem& problem, int64_t units, ParallelFor parallel_for, RunUnit&& unit) {
  const bool presumes = presumes_all_kept(problem);
  const int64_t all = has_row_losses(problem) ? problem.rows : numel(problem);
  double divisor = presumes ? double(std::max<int64_t>(all, 1)) : divisor_of(problem, parallel_for);
  bool has_ignored = false;
  double total = sum_of_units(problem, units, divisor, &has_ignored, parallel_for, unit);
  if (presumes && has_ignored) {
    divisor = divisor_of(problem, parallel_for);
    if (problem.gradient) total = sum_of_units(problem, units, divisor, &has_ignored, parallel_for, unit);
  }
  if (!problem.loss) return;
  const double loss = units ? total / divisor : 0;  // nothing divided by nothing is 0 too
  if (problem.scalar == Scalar::f64) *static_cast<double*>(problem.loss) = loss;
  else *static_cast<float*>(problem.loss) = float(loss);
}

// A piece of one image of one level: a strip of planes, or with channels last a chunk of rows.
struct Unit {
  int64_t level, first_anchor, image;
  Strip strip;
  int64_t chunk;
};

std::vector<Unit> units_of(const Pyramid& p) {
  // Narrow enough to share many classes out, in whole blocks of 32.
  const int64_t width = std::clamp<int64_t>(4 * kChunk / std::max<int64_t>(p.problem.classes, 1) / 32 * 32, 64, kMaxStrip);
  std::vector<Unit> units;
  int64_t first_anchor = 0;
  for (int64_t l = 0; l < p.level_count; ++l) {
    const Level& level = p.levels[l];
    for (int64_t image = 0; image < p.images; ++image) {
      if (level.channels_last) {
        for (int64_t chunk = 0; chunk < chunks_of(level.positions * p.anchors * p.problem.classes); ++chunk)
          units.push_back({l, first_anchor, image, {}, chunk});
        continue;
      }
      for (int64_t a = 0; a < p.anchors; ++a)
        for (int64_t at = 0; at < level.positions; at += width)
          units.push_back({l, first_anchor, image, {p.anchors, level.positions, a, at, std::min(width, level.positions - at)}, 0});
    }
    first_anchor += level.positions * p.anchors;
  }
  return units;
}

const void* advance(const void* p, int64_t elements, int64_t size) { return p ? static_cast<const char*>(p) + elements * size : nullptr; }

// The unit's image of its level as a problem of its own: its rows are the level's anchors.
Problem image_problem(const Pyramid& pyramid, const Unit& unit) {
  const Level& level = pyramid.levels[unit.level];
  Problem p = pyramid.problem;
  const int64_t acc_size = p.scalar == Scalar::f64 ? 8 : 4;
  const int64_t row = unit.image * (p.rows / pyramid.images) + unit.first_anchor;
  p.rows = level.positions * pyramid.anchors;
  const int64_t offset = unit.image * p.rows * p.classes;
  p.inputs = advance(level.inputs, offset, size_of(p.scalar));
  p.gradient = const_cast<void*>(advance(level.gradient, offset, size_of(p.scalar)));
  p.targets = advance(p.targets, row, size_of(p.target));
  p.scores = advance(p.scores, row, acc_size);
  p.weight = advance(p.weight, pyramid.weight_per_image ? unit.image : row, acc_size);
  p.weight_row_stride = pyramid.weight_per_image ? 0 : 1;
  if (p.weight && pyramid.weight_per_image && !p.alpha) {  // one factor more for the whole image, which stays uniform
    const double weight = read_acc(p.weight, p.scalar);
    p.alpha_positive *= weight;
    p.alpha_negative *= weight;
    p.weight = nullptr;
  }
  return p;
}

}  // namespace

const char* level() { return kLevels[level_index()]; }

void run(const Problem& problem, ParallelFor parallel_for) {
  const bool of_rows = has_row_losses(problem);
  const int64_t rows = rows_of_chunk(problem.classes), chunks = of_rows ? (problem.rows + rows - 1) / rows : chunks_of(numel(problem));
  const ChunkKernel kernel = of_rows ? FOCAL_EXT_BEST(run_rows) : FOCAL_EXT_BEST(run_chunk);
  run_units(problem, chunks, parallel_for, [&](int64_t i, const Common& common) { return kernel(problem, i, common); });
}

void run(const Pyramid& pyramid, ParallelFor parallel_for) {
  const ChunkKernel chunk = FOCAL_EXT_BEST(run_chunk);
  const StripKernel strip = FOCAL_EXT_BEST(run_strip);
  const std::vector<Unit> units = units_of(pyramid);
  run_units(pyramid.problem, int64_t(units.size()), parallel_for, [&](int64_t i, const Common& common) {
    const Unit& unit = units[i];
    const Problem image = image_problem(pyramid, unit);
    return unit.strip.count ? strip(image, unit.strip, common) : chunk(image, unit.chunk, common);
  });
}

int64_t first_bad_id(const Problem& problem, bool background, ParallelFor parallel_for) {
  const int64_t chunks = chunks_of(problem.rows);
  const std::unique_ptr<int64_t[]> first(new int64_t[chunks]);
  parallel(parallel_for, chunks, [&](int64_t i) {
    first[i] = -1;
    const int64_t begin = i * kChunk, end = std::min(begin + kChunk, problem.rows);
    if (with_ids(problem, [&](const auto* ids) { return largest(ids + begin, end - begin) < uint64_t(problem.classes); })) return;  // all positive
    for (int64_t row = begin; first[i] < 0 && row < end; ++row)
      if (const Row kind = row_kind(problem, label_at(problem, row)); kind == Row::bad || (kind == Row::background && !background)) first[i] = row;
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

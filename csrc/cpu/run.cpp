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

// Chunks of flat logits, or of whole rows where a row has one loss.
int64_t chunks_of_rows(const Problem& p, int64_t rows) {
  const int64_t chunk = rows_of_chunk(p.classes);
  return has_row_losses(p) ? (rows + chunk - 1) / chunk : chunks_of(rows * p.classes);
}

ChunkKernel chunk_kernel(const Problem& p) {
  return has_row_losses(p) ? FOCAL_EXT_BEST(run_rows) : FOCAL_EXT_BEST(run_chunk);
}
StripKernel strip_kernel(const Problem& p) {
  return has_row_losses(p) ? FOCAL_EXT_BEST(run_row_strip) : FOCAL_EXT_BEST(run_strip);
}

double acc_at(const void* values, Scalar scalar, int64_t i) {
  return scalar == Scalar::f64 ? static_cast<const double*>(values)[i] : double(static_cast<const float*>(values)[i]);
}

// One number for each of some groups or units. A single one takes no memory: a call on few logits makes six of them.
template <class T>
class Each {
 public:
  explicit Each(int64_t count, T value = T()) : count_(count), many_(count > 1 ? new T[count] : nullptr) {
    std::fill(begin(), end(), value);
  }
  T* begin() { return many_ ? many_.get() : &one_; }
  T* end() { return begin() + count_; }
  T& operator[](int64_t i) { return begin()[i]; }
  const T& operator[](int64_t i) const { return many_ ? many_[i] : one_; }

 private:
  int64_t count_;
  std::unique_ptr<T[]> many_;
  T one_;
};

// What counts for the divisor of each group: the sums of count(the group's problem, i) over `chunks` of it.
template <class Count>
Each<int64_t> counts_of_groups(const Problem& problem, int64_t chunks, ParallelFor parallel_for, Count count) {
  Each<int64_t> counts(problem.groups * chunks);
  parallel(parallel_for, problem.groups * chunks, [&](int64_t i) {
    counts[i] = problem.groups == 1 ? count(problem, i) : count(group_of(problem, i / chunks), i % chunks);
  });
  Each<int64_t> totals(problem.groups);
  for (int64_t i = 0; i < problem.groups * chunks; ++i) totals[i / chunks] += counts[i];
  return totals;
}

// Dense targets that are not ignored, of softmax losses rows, of which `positions` lie side by side in planes.
Each<int64_t> count_dense(const Problem& problem, int64_t positions, ParallelFor parallel_for) {
  const int64_t rows = problem.rows / std::max<int64_t>(problem.groups, 1), least = 1;
  const int64_t width = has_row_losses(problem) ? problem.classes : 1,
                units = rows * problem.classes / std::max(width, least);
  const int64_t size = std::max(kChunk / std::max(width, least), least), chunks = (units + size - 1) / size;
  return counts_of_groups(problem, chunks, parallel_for, [=](const Problem& group, int64_t chunk) {
    return with_dense(group, [&](const auto* t) {
      using acc_t = decltype(load(*t));
      const acc_t ignored = acc_t(ignored_target(group));
      int64_t count = 0;
      for (int64_t i = chunk * size; i < std::min((chunk + 1) * size, units); ++i) {
        bool kept = true;
        const auto* const first = t + i / positions * positions * width + i % positions;
        for (int64_t c = 0; c < width; ++c) kept &= load(first[c * positions]) != ignored;
        count += kept;
      }
      return count;
    });
  });
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
Each<int64_t> count_rows(const Problem& problem, ParallelFor parallel_for) {
  const bool positives = problem.divisor == Divisor::positives;
  const int64_t rows = problem.rows / std::max<int64_t>(problem.groups, 1);
  if (!positives && !problem.has_ignore_index) return Each<int64_t>(problem.groups, rows);
  const int64_t ignored = problem.has_ignore_index ? problem.ignore_index : -1;  // which no positive is
  const uint64_t classes = uint64_t(problem.classes);
  return counts_of_groups(problem, chunks_of(rows), parallel_for, [=](const Problem& group, int64_t i) {
    return with_ids(group, [&](const auto* ids) {
      int64_t count = 0;
      for (int64_t row = i * kChunk; row < std::min((i + 1) * kChunk, rows); ++row) {
        const int64_t label = widened(ids[row]);
        count += int64_t(label != ignored) & int64_t(!positives || uint64_t(label) < classes);
      }
      return count;
    });
  });
}

// Of every group.
Each<double> divisors_of(const Problem& problem, int64_t positions, ParallelFor parallel_for) {
  Each<double> divisors(problem.groups, problem.divisor_value);
  if (is_counted(problem)) {
    const bool dense = is_dense(problem.target), of_logits = problem.divisor == Divisor::kept && !dense;
    const Each<int64_t> counts =
        dense ? count_dense(problem, positions, parallel_for) : count_rows(problem, parallel_for);
    for (int64_t g = 0; g < problem.groups; ++g)
      divisors[g] = double(std::max<int64_t>(counts[g] * (of_logits ? problem.classes : 1), 1));
  } else if (problem.divisor == Divisor::tensor) {
    for (int64_t g = 0; g < problem.groups; ++g)
      divisors[g] = acc_at(problem.divisor_tensor, problem.scalar, problem.divisor_per_group ? g : 0);
  }
  return divisors;
}

// The factor of every group's gradient.
Each<double> scales_of(const Problem& problem, const Each<double>& divisors) {
  Each<double> scales(problem.groups);
  for (int64_t g = 0; g < problem.groups; ++g) {
    const bool has_upstream = problem.grad_output && !problem.grad_output_per_element;
    scales[g] =
        (has_upstream ? acc_at(problem.grad_output, problem.scalar, problem.grad_output_per_group ? g : 0) : 1.0) /
        divisors[g];
  }
  return scales;
}

template <class scalar_t>
void scale_chunk(void* gradient, int64_t begin, int64_t end, double factor) {
  using acc_t = typename accumulate<scalar_t>::type;
  scalar_t* g = static_cast<scalar_t*>(gradient);
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) store(g[i], acc_t(load(g[i]) * acc_t(factor)));
}

// With a table 2^19 logits of bf16 take 215 us instead of 275 (two threads), of which it is about 50. Dense targets may
// have few blocks of zeros.
constexpr int64_t kTabulateAbove = 1 << 19, kTabulateDenseAbove = 1 << 22;

bool pays_to_tabulate(const Problem& p, int64_t numel) {
  return is_half(p.scalar) && is_uniform(p) && !has_row_losses(p) &&
         numel >= (is_dense(p.target) ? kTabulateDenseAbove : kTabulateAbove);
}

// Null where it does not pay, or where there is no memory for it: then the formula computes every logit, and the sum is
// in its order.
std::unique_ptr<Entry[]> tabulate(const Problem& problem, int64_t numel, double scale, ParallelFor parallel_for) {
  if (!pays_to_tabulate(problem, numel)) return nullptr;
  std::unique_ptr<Entry[]> table(new (std::nothrow) Entry[kEntries]);
  if (!table) return nullptr;
  const TableKernel kernel = FOCAL_EXT_BEST(run_table);
  parallel(parallel_for, kEntries / kChunk, [&](int64_t i) { kernel(problem, i, scale, table.get()); });
  return table;
}

// Runs unit(i, what units have in common) for every i: units in any order, each group's sums in one. `units` of a group
// follow those of the one before.
template <class RunUnit>
Each<double> sums_of_groups(const Problem& problem, int64_t units, const Each<double>& divisors, bool* has_ignored,
    ParallelFor parallel_for, RunUnit&& unit) {
  Each<double> scales = scales_of(problem, divisors);
  const int64_t groups = problem.groups, group_numel = numel(problem) / std::max<int64_t>(groups, 1);
  const bool alike =
      groups <= 1 || std::all_of(scales.begin(), scales.end(), [&](double scale) { return scale == scales[0]; });
  // groups that share a table, or have none
  const int64_t together = alike || !pays_to_tabulate(problem, group_numel) ? groups : 1;
  Each<double> sums(groups * units);
  for (int64_t first = 0; first < groups; first += together) {
    const std::unique_ptr<Entry[]> table =
        alike || together == 1 ? tabulate(problem, together * group_numel, scales[first], parallel_for) : nullptr;
    parallel(parallel_for, together * units, [&](int64_t i) {
      const int64_t group = groups == 1 ? 0 : first + i / units;
      sums[first * units + i] = unit(first * units + i, Common{scales[group], table.get(), has_ignored + group});
    });
  }
  Each<double> totals(groups);
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < units; ++i) totals[g] += sums[g * units + i];
  return totals;
}

// Nearly always all targets are kept, and to count them first would cost a pass over them. So the pass is made as if
// none were ignored, and made again where one is. Bytes are counted first: they hold the ignored number only if
// somebody chose it. So are targets of logits that are overwritten.
bool presumes_all_kept(const Problem& p) {
  return is_counted(p) && is_dense(p.target) && p.target != Target::dense_u8 && p.gradient != p.inputs;
}

// `units` of each group, those of one after those of the other.
template <class RunUnit>
void run_units(const Problem& problem, int64_t positions, int64_t units, ParallelFor parallel_for, RunUnit&& unit) {
  const bool presumes = presumes_all_kept(problem);
  const int64_t groups = problem.groups,
                all = (has_row_losses(problem) ? problem.rows : numel(problem)) / std::max<int64_t>(groups, 1);
  Each<double> divisors = presumes ? Each<double>(groups, double(std::max<int64_t>(all, 1)))
                                   : divisors_of(problem, positions, parallel_for);
  Each<bool> has_ignored(groups);
  Each<double> totals = sums_of_groups(problem, units, divisors, has_ignored.begin(), parallel_for, unit);
  if (presumes && std::any_of(has_ignored.begin(), has_ignored.end(), [](bool has) { return has; })) {
    divisors = divisors_of(problem, positions, parallel_for);
    if (problem.gradient) totals = sums_of_groups(problem, units, divisors, has_ignored.begin(), parallel_for, unit);
  }
  for (int64_t g = 0; problem.loss && g < groups; ++g) {
    const double loss = units ? totals[g] / divisors[g] : 0;  // nothing divided by nothing is 0 too
    if (problem.scalar == Scalar::f64) static_cast<double*>(problem.loss)[g] = loss;
    else static_cast<float*>(problem.loss)[g] = float(loss);
  }
}

// A piece of one image of one level: a strip of planes, or with channels last a chunk of rows.
struct Unit {
  int64_t level, first_anchor, image;
  Strip strip;
  int64_t chunk;
};

// In whole steps of 32. A strip is narrow enough that many classes are shared among threads, and that a softmax loss
// keeps what it computes of each logit. With class ids it has several blocks where at least 64 strips remain.
int64_t width_of_strips(const Problem& p) {
  const int64_t classes = std::max<int64_t>(p.classes, 1);
  if (!has_row_losses(p)) return std::clamp<int64_t>(4 * kChunk / classes / 32 * 32, 64, kMaxStrip);
  if (is_dense(p.target)) return std::clamp<int64_t>(kDenseStripLogits / classes / 32 * 32, 64, kMaxStrip);
  const int64_t block = softmax_block(classes);
  return block * std::clamp<int64_t>(p.rows / block / 64, 1, kStripBlocks);
}

// Group by group.
std::vector<Unit> units_of(const Pyramid& p) {
  const int64_t width = width_of_strips(p.problem);
  const int64_t images = p.images / std::max<int64_t>(p.problem.groups, 1);
  std::vector<Unit> units;
  const auto add = [&](int64_t l, int64_t first_anchor, int64_t image) {
    const Level& level = p.levels[l];
    if (level.channels_last) {
      for (int64_t chunk = 0; chunk < chunks_of_rows(p.problem, level.positions * p.anchors); ++chunk)
        units.push_back({l, first_anchor, image, {}, chunk});
      return;
    }
    for (int64_t a = 0; a < p.anchors; ++a)
      for (int64_t at = 0; at < level.positions; at += width)
        units.push_back(
            {l, first_anchor, image, {p.anchors, level.positions, a, at, std::min(width, level.positions - at)}, 0});
  };
  for (int64_t first = 0; first < p.images; first += images) {
    int64_t first_anchor = 0;
    for (int64_t l = 0; l < p.level_count; ++l) {
      for (int64_t image = first; image < first + images; ++image) add(l, first_anchor, image);
      first_anchor += p.levels[l].positions * p.anchors;
    }
  }
  return units;
}

// The unit's image of its level as a problem of its own: its rows are the level's anchors.
Problem image_problem(const Pyramid& pyramid, const Unit& unit) {
  const Level& level = pyramid.levels[unit.level];
  Problem p = pyramid.problem;
  const int64_t acc_size = p.scalar == Scalar::f64 ? 8 : 4;
  const int64_t row = unit.image * (p.rows / pyramid.images) + unit.first_anchor;
  p.rows = level.positions * pyramid.anchors;
  const int64_t offset = unit.image * p.rows * p.classes, loss = (has_row_losses(p) ? row : offset) * size_of(p.scalar);
  p.inputs = advanced(level.inputs, offset * size_of(p.scalar));
  p.gradient = advanced(level.gradient, offset * size_of(p.scalar));
  p.targets =
      advanced(p.targets, is_dense(p.target) ? offset * size_of_dense(p.target, p.scalar) : row * size_of(p.target));
  p.scores = advanced(p.scores, row * acc_size);
  p.loss_map = advanced(p.loss_map, loss);
  if (p.grad_output_per_element) p.grad_output = advanced(p.grad_output, loss);
  if (p.weight_class_stride) return p;
  p.weight = advanced(p.weight, (pyramid.weight_per_image ? unit.image : row) * acc_size);
  p.weight_row_stride = pyramid.weight_per_image ? 0 : 1;
  if (p.weight && pyramid.weight_per_image && !p.alpha) {  // one factor more for the whole image, which stays uniform
    const double weight = acc_at(p.weight, p.scalar, 0);
    p.alpha_positive *= weight;
    p.alpha_negative *= weight;
    p.weight = nullptr;
  }
  return p;
}

}  // namespace

const char* level() { return kLevels[level_index()]; }

void run(const Problem& problem, ParallelFor parallel_for) {
  const int64_t groups = problem.groups, chunks = chunks_of_rows(problem, problem.rows / std::max<int64_t>(groups, 1));
  const ChunkKernel kernel = chunk_kernel(problem);
  run_units(problem, 1, chunks, parallel_for, [&](int64_t i, const Common& common) {
    return groups == 1 ? kernel(problem, i, common) : kernel(group_of(problem, i / chunks), i % chunks, common);
  });
}

void run(const Pyramid& pyramid, ParallelFor parallel_for) {
  const ChunkKernel chunk = chunk_kernel(pyramid.problem);
  const StripKernel strip = strip_kernel(pyramid.problem);
  const Level& first = pyramid.levels[0];
  Problem all = pyramid.problem;  // whose logits say what is overwritten
  all.inputs = first.inputs;
  all.gradient = first.gradient;
  const std::vector<Unit> units = units_of(pyramid);
  const int64_t units_of_group = int64_t(units.size()) / std::max<int64_t>(pyramid.problem.groups, 1);
  const int64_t positions = first.channels_last ? 1 : std::max<int64_t>(first.positions, 1);
  run_units(all, positions, units_of_group, parallel_for, [&](int64_t i, const Common& common) {
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
    // all positive
    if (with_ids(
            problem, [&](const auto* ids) { return largest(ids + begin, end - begin) < uint64_t(problem.classes); }))
      return;
    for (int64_t row = begin; first[i] < 0 && row < end; ++row)
      if (const Row kind = row_kind(problem, label_at(problem, row));
          kind == Row::bad || (kind == Row::background && !background))
        first[i] = row;
  });
  for (int64_t i = 0; i < chunks; ++i)
    if (first[i] >= 0) return first[i];
  return -1;
}

void scale(
    void* gradient, Scalar scalar, int64_t numel, const void* factors, int64_t groups, ParallelFor parallel_for) {
  const auto is_one = [&](int64_t g) { return acc_at(factors, scalar, g) == 1; };
  int64_t first = 0;
  while (first < groups && is_one(first)) ++first;
  if (first == groups || numel == 0) return;
  const int64_t size = numel / groups;
  parallel(parallel_for, chunks_of(numel), [&](int64_t i) {
    const int64_t end = std::min((i + 1) * kChunk, numel);
    for (int64_t begin = i * kChunk, last; begin < end; begin = last) {
      const int64_t g = begin / size;
      last = std::min((g + 1) * size, end);
      if (is_one(g)) continue;
      const double factor = acc_at(factors, scalar, g);
      switch (scalar) {
        case Scalar::f64: scale_chunk<double>(gradient, begin, last, factor); break;
        case Scalar::bf16: scale_chunk<BFloat16>(gradient, begin, last, factor); break;
        case Scalar::f16: scale_chunk<Float16>(gradient, begin, last, factor); break;
        default: scale_chunk<float>(gradient, begin, last, factor);
      }
    }
  });
}

}  // namespace focal_ext::cpu

// Owns: the plan of one call: tiles, blocks, flow, workspace, and the order of its launches.
// Must not know: what the kernels compute, and torch.
#include "launch.h"

#include <algorithm>
#include <vector>

#include "coefficients.cuh"
#include "dense_count.cuh"
#include "launch.cuh"
#include "pyramid_plan.cuh"
#include "scale.cuh"
#include "softmax_start.cuh"

namespace focal_ext::cuda {

extern template const char* start_focal<float>(const Problem&, const Arguments<float>&, uint32_t, void*);
extern template const char* start_focal<double>(const Problem&, const Arguments<double>&, uint32_t, void*);
extern template const char* start_focal<__nv_bfloat16>(
    const Problem&, const Arguments<__nv_bfloat16>&, uint32_t, void*);
extern template const char* start_focal<__half>(const Problem&, const Arguments<__half>&, uint32_t, void*);
extern template const char* start_pyramid<float>(
    const LossParameters&, const PyramidArguments<float>&, uint32_t, void*);
extern template const char* start_pyramid<__nv_bfloat16>(
    const LossParameters&, const PyramidArguments<__nv_bfloat16>&, uint32_t, void*);
extern template const char* start_pyramid<__half>(
    const LossParameters&, const PyramidArguments<__half>&, uint32_t, void*);
extern template const char* start_softmax<float>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);
extern template const char* start_softmax<double>(
    const Problem&, const Normaliser<double>&, double*, const RowBatch<double>&, uint32_t, void*);
extern template const char* start_softmax<__nv_bfloat16>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);
extern template const char* start_softmax<__half>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);

namespace {

// Workspace: the counts of the label scan, then one partial sum per block.
constexpr size_t kCountsBytes = kScanBlocks * sizeof(uint32_t);
static_assert(kScanBlocks == 128 && kCountsBytes % 256 == 0);

// Of one tile 32 bits hold the sum of a class and an index, and of all the index of a tile, plus one step of the grid.
constexpr int64_t kMaxClasses = (int64_t(1) << 31) - 1, kMaxTiles = (int64_t(1) << 32) - kMaxBlocks * kWarps;
// Tiles of a pyramid have 8 rows or more, and a softmax row has one reader.
constexpr int64_t kMaxClassesInRows = int64_t(1) << 27;

// Of all types but f64.
template <class F>
const char* with_fast_scalar(Scalar scalar, F&& f) {
  switch (scalar) {
    case Scalar::f32: return f(float());
    case Scalar::bf16: return f(__nv_bfloat16());
    default: return f(__half());
  }
}
template <class F>
const char* with_scalar(Scalar scalar, F&& f) {
  return scalar == Scalar::f64 ? f(double()) : with_fast_scalar(scalar, f);
}

// Weights or alphas of classes, which the stream takes from shared memory.
bool is_per_class(const Problem& p) { return p.alpha || (p.weight && p.weight_class_stride != 0); }

Flow choose_flow(const Problem& p) {
  const bool aligned = is_aligned(p.inputs) && is_aligned(p.gradient) && is_aligned(p.loss_map) &&
                       (!is_dense(p.target) || is_aligned(p.targets)) &&
                       (!p.grad_output_per_element || is_aligned(p.grad_output)) &&
                       (p.groups == 1 || numel(p) / p.groups % kTileUnit == 0);
  const bool weight_per_logit = p.weight && p.weight_row_stride != 0 && p.weight_class_stride != 0;
  const bool plain = !weight_per_logit && (p.alpha || p.alpha_negative != 0) && !(p.gradient && p.loss_map);
  const bool is_sigmoid_focal = p.loss_parameters.loss == Loss::sigmoid_focal && !p.scores;
  const bool has_loop = !is_per_class(p) ||
                        (is_sigmoid_focal && fits_class_slots(p.classes) && !p.loss_map && !p.grad_output_per_element);
  const bool ignores_zeros = is_dense(p.target) && ignored_target(p) == 0;
  if (!has_focal_negatives(p.loss_parameters) || exponent_of_negatives(p.loss_parameters) > kSteepGamma || !aligned ||
      !plain || !has_loop || ignores_zeros || p.scalar == Scalar::f64)
    return Flow::careful;
  if (p.loss_map) return Flow::loss_map;
  if (!p.gradient) return Flow::loss;
  return p.grad_output_per_element ? Flow::chain : Flow::gradient;
}

Factors choose_factors(const Problem& p, Flow flow) {
  if (flow != Flow::loss && flow != Flow::gradient) return Factors::one;
  if (is_per_class(p)) return Factors::classes;
  const bool rows =
      p.weight && p.weight_row_stride != 0 && p.classes >= 16 / size_of(p.scalar) && p.classes <= kMaxPositionClasses;
  return rows ? Factors::rows : Factors::one;
}

// Whether anything comes by the row; else the logits are a flat array, of which rows and classes mean nothing.
bool reads_rows(const Problem& p) { return !is_dense(p.target) || p.weight || p.alpha; }

// Of a flat array of another loss than the focal loss fewer tiles: its registers let fewer warps be resident, and a
// second round of them takes longer than twice the tile.
uint32_t least_tiles_of(const Problem& p, uint32_t least_tiles) {
  return reads_rows(p) || p.loss_parameters.loss == Loss::sigmoid_focal ? least_tiles : (least_tiles + 1) / 2;
}

bool needs_counts(const Problem& p) { return p.divisor == Divisor::kept || p.divisor == Divisor::positives; }

// Counts of each group, which so many blocks share.
uint32_t parts_of(int64_t groups) { return groups < kScanBlocks ? uint32_t(kScanBlocks / groups) : 1; }

const char* count_rows(const Problem& p, uint32_t* counts, void* stream) {
  const uint32_t parts = parts_of(p.groups), blocks = uint32_t(p.groups * parts);
  const int64_t rows = p.rows / p.groups;
  if (is_dense(p.target)) {
    const bool of_rows = has_row_losses(p);
    const Dense targets = {p.targets, p.target, p.scalar, ignored_target(p)};
    return launch(count_dense_kernel, blocks, kScanThreads, stream, targets, of_rows ? rows : rows * p.classes,
        of_rows ? p.classes : int64_t(1), parts, counts);
  }
  const auto kernel = p.divisor == Divisor::positives ? count_rows_kernel<true> : count_rows_kernel<false>;
  return launch(kernel, blocks, kScanThreads, stream, ids_of(p), rows, parts, counts);
}

template <class acc_t>
Normaliser<acc_t> normaliser_of(const Problem& p, const uint32_t* counts) {
  return {p.divisor, acc_t(p.divisor_value), static_cast<const acc_t*>(p.divisor_tensor), counts,
      is_dense(p.target) ? 1 : p.classes};
}

template <class scalar_t>
Arguments<scalar_t> arguments_of(
    const Problem& p, const Cut& tiles, const uint32_t* counts, acc_of<scalar_t>* partials) {
  using acc_t = acc_of<scalar_t>;
  Arguments<scalar_t> a = {};
  a.inputs = static_cast<const scalar_t*>(p.inputs);
  a.gradient = static_cast<scalar_t*>(p.gradient);
  a.loss_map = static_cast<scalar_t*>(p.loss_map);
  a.partials = p.loss ? partials : nullptr;
  a.numel = numel(p) / p.groups;
  if (tiles.tiles > 0) a.batch.tiles = count_of(tiles.tiles);
  a.tile_rows = reads_rows(p) ? tiles.tile_rows : 0;
  a.tile_elements = tiles.elements;
  a.tiles = uint32_t(tiles.tiles * p.groups);
  a.classes = reads_rows(p) ? uint32_t(p.classes) : kMaxTileElements;
  a.classes_reciprocal = 0xffffffffu / a.classes;
  a.classes_wide_reciprocal = ~uint64_t(0) / a.classes;
  a.flow = choose_flow(p);
  a.factors = choose_factors(p, a.flow);
  a.alpha_positive = acc_t(p.alpha_positive);
  a.alpha_negative = p.alpha ? acc_t(1) : acc_t(p.alpha_negative);
  a.alpha = static_cast<const acc_t*>(p.alpha);
  a.weight = static_cast<const acc_t*>(p.weight);
  a.weight_row_stride = p.weight_row_stride;
  a.weight_class_stride = p.weight_class_stride;
  a.normaliser = normaliser_of<acc_t>(p, counts);
  if (p.grad_output_per_element) a.upstream_per_element = static_cast<const scalar_t*>(p.grad_output);
  else a.upstream = static_cast<const acc_t*>(p.grad_output);
  return a;
}

template <class acc_t>
acc_t* partials_in(void* workspace) {
  return reinterpret_cast<acc_t*>(static_cast<char*>(workspace) + kCountsBytes);
}

uint32_t blocks_for(int64_t tiles, uint32_t max_blocks) {
  const int64_t wanted = (tiles + kWarps - 1) / kWarps;
  return wanted < max_blocks ? uint32_t(wanted) : max_blocks;
}

template <class acc_t>
const char* finish(const Problem& p, const uint32_t* counts, const acc_t* partials, uint32_t blocks, void* stream) {
  if (!p.loss) return nullptr;
  return launch(finish_kernel<acc_t>, 1, kFinishThreads, stream, partials, blocks, normaliser_of<acc_t>(p, counts),
      static_cast<acc_t*>(p.loss));
}

template <class scalar_t>
const char* run_as(const Problem& p, const Cut& tiles, void* workspace, void* stream, uint32_t max_blocks) {
  using acc_t = acc_of<scalar_t>;
  uint32_t* const counts = static_cast<uint32_t*>(workspace);
  acc_t* const partials = partials_in<acc_t>(workspace);
  uint32_t blocks = 0;
  const bool work = has_row_losses(p) ? p.rows > 0 : numel(p) > 0;
  if (work && (p.loss || p.gradient) && needs_counts(p))
    if (const char* error = count_rows(p, counts, stream)) return error;
  if (work && has_row_losses(p)) {
    blocks = row_blocks(p) < max_blocks ? uint32_t(row_blocks(p)) : max_blocks;
    if (const char* error = start_softmax<scalar_t>(p, normaliser_of<acc_t>(p, counts), partials, {}, blocks, stream))
      return error;
  } else if (work) {
    const Arguments<scalar_t> arguments = arguments_of<scalar_t>(p, tiles, counts, partials);
    blocks = blocks_for(arguments.tiles, max_blocks);
    if (const char* error = start_focal<scalar_t>(p, arguments, blocks, stream)) return error;
  }
  return finish<acc_t>(p, counts, partials, blocks, stream);
}

// What a call with several groups needs beside the results, one after the other.
struct BatchWorkspace {
  int64_t counts, divisors, factors, sums, bytes;  // where they begin

  BatchWorkspace(const Problem& p, const Cut& tiles) {
    const auto rounded = [](int64_t n) { return (n + 255) / 256 * 256; };
    const int64_t acc_size = p.scalar == Scalar::f64 ? 8 : 4;
    counts = 0;
    divisors = rounded(p.groups * parts_of(p.groups) * int64_t(sizeof(uint32_t)));
    factors = divisors + rounded(p.groups * acc_size);
    sums = factors + rounded(p.groups * acc_size);
    bytes = sums + p.groups * tiles.tiles * acc_size;
  }
};

constexpr int64_t kMaxGroups = (int64_t(1) << 31) - 1;

// Of a group. One that fits a tile is one; a row that has a loss leaves a sum, as if it were one.
Cut cut_group(const Problem& p, uint32_t least_tiles) {
  const int64_t rows = p.rows / p.groups, numel = rows * p.classes, least = (least_tiles + p.groups - 1) / p.groups;
  if (has_row_losses(p)) return {0, 0, rows};
  if (numel == 0) return {};
  if (least == 1 && numel <= kMaxTileElements && (rows <= kMaxTileRows || !reads_rows(p)))
    return {kMaxTileElements, 0, 1};
  return cut(rows, p.classes, reads_rows(p), uint32_t(least));
}

template <class scalar_t>
const char* start_batch(const Problem& p, const Cut& tiles, const acc_of<scalar_t>* factors, acc_of<scalar_t>* sums,
    void* stream, uint32_t max_blocks) {
  using acc_t = acc_of<scalar_t>;
  const Normaliser<acc_t> none = {Divisor::value, acc_t(1), nullptr, nullptr, 1};  // the factors have it
  if (has_row_losses(p)) {
    const RowBatch<acc_t> batch = {factors, uint32_t(tiles.tiles), ~uint64_t(0) / uint64_t(tiles.tiles)};
    return start_softmax<scalar_t>(
        p, none, sums, batch, row_blocks(p) < max_blocks ? uint32_t(row_blocks(p)) : max_blocks, stream);
  }
  Arguments<scalar_t> arguments = arguments_of<scalar_t>(p, tiles, nullptr, sums);
  arguments.partials = sums;  // also where no loss is wanted
  arguments.batch = {factors, count_of(tiles.tiles), p.rows / p.groups};
  arguments.normaliser = none;
  arguments.upstream = nullptr;
  return start_focal<scalar_t>(p, arguments, blocks_for(arguments.tiles, max_blocks), stream);
}

// All groups in one launch of each kernel.
template <class scalar_t>
const char* run_batch(const Problem& p, const Cut& tiles, char* workspace, void* stream, uint32_t max_blocks) {
  using acc_t = acc_of<scalar_t>;
  const BatchWorkspace places(p, tiles);
  const auto at = [&](int64_t place) { return reinterpret_cast<acc_t*>(workspace + place); };
  uint32_t* const counts = reinterpret_cast<uint32_t*>(workspace + places.counts);
  if (tiles.tiles > 0) {
    if (needs_counts(p))
      if (const char* error = count_rows(p, counts, stream)) return error;
    const Dividing<acc_t> dividing = {normaliser_of<acc_t>(p, counts), parts_of(p.groups), p.divisor_per_group,
        p.grad_output_per_group, p.gradient != nullptr, static_cast<const acc_t*>(p.grad_output)};
    const uint32_t wanted = uint32_t((p.groups + kBatchThreads - 1) / kBatchThreads),
                   grid = wanted < max_blocks ? wanted : max_blocks;
    if (const char* error = launch(divide_kernel<acc_t>, grid, kBatchThreads, stream, dividing, p.groups,
            at(places.divisors), at(places.factors)))
      return error;
    if (const char* error = start_batch<scalar_t>(p, tiles, at(places.factors), at(places.sums), stream, max_blocks))
      return error;
  }
  if (!p.loss) return nullptr;
  const int64_t at_once = tiles.tiles <= kFewTiles ? kFinishThreads / 32 : 1;
  return launch(finish_groups_kernel<acc_t>, uint32_t((p.groups + at_once - 1) / at_once), kFinishThreads, stream,
      at(places.sums), uint32_t(tiles.tiles), at(places.divisors), p.groups, static_cast<acc_t*>(p.loss));
}

// What all levels share.
template <class scalar_t>
PyramidArguments<scalar_t> arguments_of(const Pyramid& pyramid, const uint32_t* counts) {
  Problem p = pyramid.problem;
  if (pyramid.weight_per_image) p.weight = nullptr;  // a factor of a whole tile
  PyramidArguments<scalar_t> a = {};
  a.common = arguments_of<scalar_t>(p, Cut{}, counts, nullptr);
  a.common.weight = static_cast<const acc_of<scalar_t>*>(pyramid.problem.weight);
  const double positive_ratio = p.alpha_positive / p.alpha_negative;
  // A stream knows one factor a tile, and a positive's as a multiple of it, which must be a float.
  if (p.weight || p.alpha || !(positive_ratio < 1e30)) a.common.flow = Flow::careful;
  a.ids = ids_of(p);
  a.common_ids = common_ids(a.ids);
  a.scores = static_cast<const acc_of<scalar_t>*>(p.scores);
  a.image_rows = p.rows / pyramid.images;
  a.weight_per_image = pyramid.weight_per_image;
  a.positive_ratio = acc_of<scalar_t>(positive_ratio);
  return a;
}

// Each launch takes as many levels as its arguments hold; all write partial sums, one after the other.
template <class scalar_t>
const char* run_as(const Pyramid& pyramid, void* workspace, void* stream, uint32_t max_blocks) {
  using acc_t = acc_of<scalar_t>;
  const Problem& p = pyramid.problem;
  uint32_t* const counts = static_cast<uint32_t*>(workspace);
  acc_t* const partials = partials_in<acc_t>(workspace);
  if (p.rows == 0) return finish<acc_t>(p, counts, partials, 0, stream);
  if (needs_counts(p))
    if (const char* error = count_rows(p, counts, stream)) return error;
  PyramidArguments<scalar_t> a = arguments_of<scalar_t>(pyramid, counts);
  const uint32_t chosen = choose_tile_rows(p.rows, p.classes), tile_rows = chosen ? chosen : kTileUnit;
  uint32_t blocks = 0;
  std::vector<LevelArguments<scalar_t>> levels;
  int64_t first_row = 0, tiles = 0;
  for (int64_t i = 0; i < pyramid.level_count; ++i) {
    const Level& level = pyramid.levels[i];
    const int64_t rows = level.positions * pyramid.anchors;
    if (rows == 0) continue;
    if (rows >= kMaxIndex) return "focal_ext: more than 2^31 anchors in one level of one image";
    levels.push_back(level_arguments<scalar_t>(pyramid, level, tile_rows, a.common.flow != Flow::careful));
    levels.back().first_row = first_row;
    first_row += rows;
  }
  // those that take long first
  std::stable_partition(levels.begin(), levels.end(), [](const LevelArguments<scalar_t>& l) { return !l.vectors; });
  for (size_t i = 0; i < levels.size(); ++i) {
    levels[i].first_tile = uint32_t(tiles);
    tiles += tiles_of(levels[i], pyramid.images);
    if (tiles > kMaxTiles) return "focal_ext: more than 2^32 tiles";
    a.levels[a.level_count++] = levels[i];
    if (a.level_count < kMaxLevels && i + 1 < levels.size()) continue;
    a.common.gradient = a.levels[0].gradient;
    if (a.common.gradient && a.common.flow == Flow::loss) a.common.flow = Flow::gradient;
    a.common.partials = p.loss ? partials + blocks : nullptr;
    a.tiles = uint32_t(tiles);
    const uint32_t grid = blocks_for(tiles, max_blocks);
    if (const char* error = start_pyramid<scalar_t>(p.loss_parameters, a, grid, stream)) return error;
    blocks += grid;
    a.level_count = 0, tiles = 0;
  }
  return finish<acc_t>(p, counts, partials, blocks, stream);
}

// A softmax loss over planes, level by level.
const char* run_softmax_planes(const Pyramid& pyramid, void* workspace, void* stream, uint32_t max_blocks) {
  const Problem& p = pyramid.problem;
  uint32_t* const counts = static_cast<uint32_t*>(workspace);
  float* const partials = partials_in<float>(workspace);
  if (p.rows > 0 && (p.loss || pyramid.levels[0].gradient) && needs_counts(p))
    if (const char* error = count_rows(p, counts, stream)) return error;
  uint32_t blocks = 0;
  int64_t first_row = 0;
  for (int64_t i = 0; i < pyramid.level_count; ++i) {
    const Level& level = pyramid.levels[i];
    if (p.rows == 0 || level.positions == 0) continue;
    uint32_t grid = 0;
    if (const char* error = start_softmax_planes(
            pyramid, level, first_row, normaliser_of<float>(p, counts), partials + blocks, max_blocks, grid, stream))
      return error;
    blocks += grid;
    first_row += level.positions * pyramid.anchors;
  }
  return finish<float>(p, counts, partials, blocks, stream);
}

// Null, or why there is no kernel.
const char* why_not(const Pyramid& p) {
  const Problem& all = p.problem;
  if (all.scalar == Scalar::f64) return "focal_ext: levels in float64 have no kernel; copy them into rows";
  if (all.weight_class_stride) return "focal_ext: weights of classes have no kernel over levels; copy them into rows";
  if (!has_row_losses(all)) {
    if (all.loss_map || all.grad_output_per_element)
      return "focal_ext: unreduced losses of levels have no kernel; copy them into rows";
    return has_focal_negatives(all.loss_parameters) && all.loss_parameters.loss != Loss::asymmetric
               ? nullptr
               : "focal_ext: levels of this loss have no kernel; copy them into rows";
  }
  bool planes = true;
  for (int64_t i = 0; i < p.level_count; ++i) planes &= !p.levels[i].channels_last;
  return planes && !is_dense(all.target)
             ? nullptr
             : "focal_ext: softmax over levels has a kernel for class ids over planes; copy them into rows";
}

}  // namespace

size_t workspace_bytes(const Problem& p) {
  const size_t of_one = kCountsBytes + kMaxBlocks * sizeof(double);
  return p.groups <= 1 ? of_one : size_t(BatchWorkspace(p, cut_group(p, kLeastTiles)).bytes);
}

size_t workspace_bytes(const Pyramid& p) {
  const int64_t levels_at_once = has_row_losses(p.problem) ? 1 : kMaxLevels;
  return kCountsBytes + (p.level_count + levels_at_once - 1) / levels_at_once * kMaxBlocks * sizeof(double);
}

// One group after the other.
template <class RunGroup>
const char* each_group(int64_t groups, RunGroup run_group) {
  for (int64_t g = 0; g < groups; ++g)
    if (const char* error = run_group(g)) return error;
  return nullptr;
}

const char* run(const Problem& p, void* workspace, void* stream, uint32_t max_blocks, uint32_t least_tiles) {
  if (p.groups == 0) return nullptr;
  if (has_row_losses(p) && p.classes > kMaxClassesInRows) return "focal_ext: more than 2^27 classes";
  if (!has_row_losses(p) && reads_rows(p) && p.classes > kMaxClasses) return "focal_ext: 2^31 classes or more";
  if (p.groups > kMaxGroups) return "focal_ext: 2^31 groups or more";
  const bool one = p.groups == 1;
  const Cut tiles = !one ? cut_group(p, least_tiles)
                    : has_row_losses(p) || numel(p) == 0
                        ? Cut{}
                        : cut(p.rows, p.classes, reads_rows(p), least_tiles_of(p, least_tiles));
  if (tiles.tiles > kMaxTiles / p.groups) return "focal_ext: more than 2^32 tiles";
  if (max_blocks > kMaxBlocks) max_blocks = kMaxBlocks;
  if (!one)
    return with_scalar(p.scalar,
        [&](auto s) { return run_batch<decltype(s)>(p, tiles, static_cast<char*>(workspace), stream, max_blocks); });
  return with_scalar(p.scalar, [&](auto s) { return run_as<decltype(s)>(p, tiles, workspace, stream, max_blocks); });
}

// An image of a pyramid; its levels go to `levels`.
Pyramid group_of(const Pyramid& whole, int64_t image, std::vector<Level>& levels) {
  Pyramid p = whole;
  const Problem& of_all = whole.problem;
  p.problem = group_of(of_all, image);
  p.images = 1;
  if (of_all.weight) {
    const int64_t acc_size = of_all.scalar == Scalar::f64 ? 8 : 4;
    p.problem.weight = advanced(of_all.weight, image * (whole.weight_per_image ? 1 : p.problem.rows) * acc_size);
  }
  levels.assign(whole.levels, whole.levels + whole.level_count);
  for (Level& level : levels) {
    const int64_t bytes = image * level.positions * whole.anchors * of_all.classes * size_of(of_all.scalar);
    level.inputs = advanced(level.inputs, bytes);
    level.gradient = advanced(level.gradient, bytes);
  }
  p.levels = levels.data();
  return p;
}

const char* run(const Pyramid& p, void* workspace, void* stream, uint32_t max_blocks) {
  if (p.problem.groups != 1) {
    std::vector<Level> levels;
    return each_group(
        p.problem.groups, [&](int64_t g) { return run(group_of(p, g, levels), workspace, stream, max_blocks); });
  }
  if (const char* error = why_not(p)) return error;
  if (p.problem.classes > kMaxClassesInRows) return "focal_ext: more than 2^27 classes";
  if (max_blocks > kMaxBlocks) max_blocks = kMaxBlocks;
  if (has_row_losses(p.problem)) return run_softmax_planes(p, workspace, stream, max_blocks);
  return with_fast_scalar(
      p.problem.scalar, [&](auto s) { return run_as<decltype(s)>(p, workspace, stream, max_blocks); });
}

const char* scale(void* gradient, Scalar scalar, int64_t numel, const void* factors, int64_t groups, void* stream,
    uint32_t max_blocks) {
  if (numel == 0) return nullptr;
  return with_scalar(scalar, [&](auto s) {
    using scalar_t = decltype(s);
    const int64_t size = numel / groups, wanted = size / (kVector<scalar_t> * kScaleThreads) + 1;
    const uint32_t most = max_blocks < kMaxScaleBlocks ? max_blocks : kMaxScaleBlocks,
                   blocks = wanted < most ? uint32_t(wanted) : most;
    const uint32_t at_once = groups < most / blocks ? uint32_t(groups) : most / blocks;
    return launch(scale_kernel<scalar_t>, blocks * at_once, kScaleThreads, stream, static_cast<scalar_t*>(gradient),
        size, groups, blocks, static_cast<const acc_of<scalar_t>*>(factors));
  });
}

}  // namespace focal_ext::cuda

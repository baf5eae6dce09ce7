// Owns: the focal kernel over the levels of a pyramid, each in planes or with channels last: tiles of negatives stream,
// with positives and ignored anchors among them in planes; any other goes element by element.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "focal.cuh"
#include "pyramid_tile.cuh"

namespace focal_ext::cuda {

// 16 bytes of -inf.
template <class scalar_t>
constexpr uint32_t kMinusInfinities = 0xff800000u;
template <>
constexpr uint32_t kMinusInfinities<__nv_bfloat16> = 0xff80ff80u;
template <>
constexpr uint32_t kMinusInfinities<__half> = 0xfc00fc00u;

// Down the lines of a tile: in planes a lane keeps its positions and goes from class to class, in rows it goes to its
// next neighbours.
template <class scalar_t>
struct Lines {
  int64_t step;  // from one of a lane's vectors to its next, in elements
  const PyramidArguments<scalar_t>& a;  // not in registers: few logits ask
  const LevelArguments<scalar_t>& level;
  const PyramidTile& tile;
  // of the lane's positions: what is to go where each is positive, else 0, or kIgnored; null where all are background
  const int* calls = nullptr;
  uint32_t special = 0;  // what is to go where the next of them is positive; 0: none is
  uint4 kept = {~0u, ~0u, ~0u, ~0u};  // bits that an ignored position does not keep

  // `labels` of the lane's positions become what `calls` says: no other lane reads them.
  __device__ void heed(int* labels) {
    constexpr int per_word = kVector<scalar_t> / 4;
    uint32_t words[4];
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      words[w] = 0;
#pragma unroll
      for (int j = 0; j < per_word; ++j) {
        int& label = labels[w * per_word + j];
        if (label != kIgnored) words[w] |= (per_word == 1 ? ~0u : 0xffffu) << 16 * j;
        const uint32_t line = uint32_t(label) - tile.first_line;  // of a negative label: more than there are
        if (label != kIgnored) label = line < tile.lines ? int(32 * (tile.lines - line)) : 0;  // a line is 32 vectors
      }
    }
    kept = {words[0], words[1], words[2], words[3]};
    calls = labels;
    find_special(32 * (tile.lines + 1));
  }

  // The first of the positives that has less to go.
  __device__ void find_special(uint32_t after) {
    special = 0;
#pragma unroll 1
    for (int j = 0; j < kVector<scalar_t>; ++j)
      if (calls[j] < int(after) && calls[j] > int(special)) special = uint32_t(calls[j]);
  }

  __device__ uint4 seen(uint4 x) const {
    constexpr uint32_t infinities = kMinusInfinities<scalar_t>;
    return {(x.x & kept.x) | (infinities & ~kept.x), (x.y & kept.y) | (infinities & ~kept.y),
        (x.z & kept.z) | (infinities & ~kept.z), (x.w & kept.w) | (infinities & ~kept.w)};
  }
  // From the next positive to the end of what is in flight: another one may follow.
  __device__ bool is_special(uint32_t, uint32_t to_go) const { return to_go <= special; }
  __device__ void heard(uint32_t to_go) {
    if (is_special(0, to_go)) find_special(to_go);
  }
  static __device__ bool is_marked(uint32_t) { return false; }
  template <bool>
  static __device__ void patch(uint4&, uint4&, uint32_t, uint32_t) {}
  static __device__ void pass(uint32_t) {}

  // In units of a negative's alpha.
  template <Grade, class Loss>
  __device__ bool term(float x, uint32_t j, uint32_t to_go, const Loss& loss, Term<float>& term) const {
    const int call = calls ? calls[j] : 0;
    const bool positive = call == int(to_go);
    const float* score = nullptr;
    if (may_be_scored<Loss> && positive && a.scores)
      score = a.scores + label_place(level, tile, threadIdx.x % 32 * kVector<scalar_t> + j).row;
    term = id_term<DeviceFloat>(positive, x, score, Alpha<float>{a.positive_ratio, 1.f}, loss);
    return call != kIgnored;
  }
};

// What a tile's labels hold.
struct Found {
  bool positive, ignored, bad, nothing;  // nothing: there are no labels, all are background
};

constexpr uint32_t kLeastCommon = 32;
// Whole warp: whether all labels of a tile of planes are one of the two common ids, and those that 32 lanes read beyond
// it. All loads are in flight at once, and none depends on a condition. A plane has kLeastCommon positions or more.
template <class scalar_t>
__device__ bool are_common(const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level,
    const PyramidTile& tile, uint32_t lane) {
  constexpr uint32_t kLoads = kVector<scalar_t>;
  const int64_t* const ids = static_cast<const int64_t*>(a.ids.ids) + tile.first_row;
  const uint32_t positions = level.positions.value, column = tile.first_column + lane;
  uint32_t position = level.in_line_log2 == 0 ? column : column - quotient(column, level.positions) * positions;
  int64_t id[kLoads];
#pragma unroll
  for (uint32_t u = 0; u < kLoads; ++u) {
    if (position >= positions) position -= positions;
    id[u] = ids[int64_t(position) * level.matrices.value];
    position += 32;
  }
  bool common = true;
#pragma unroll
  for (uint32_t u = 0; u < kLoads; ++u) common &= id[u] == a.common_ids.one || id[u] == a.common_ids.other;
  return __ballot_sync(~0u, !common) == 0;
}

// Whole warp: leaves the labels in shared memory unless all are background: of planes the line in whose class a column
// is positive.
template <class scalar_t>
__device__ Found read_labels(const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level,
    const PyramidTile& tile, uint32_t lane, int* labels) {
  if constexpr (sizeof(scalar_t) < 8)
    if (level.planes && a.common_ids.are_given && level.positions.value >= kLeastCommon &&
        are_common(a, level, tile, lane))
      return {false, false, false, true};
  bool positive = false, ignored = false, bad = false;
#pragma unroll 1
  for (uint32_t i = lane; i < tile.labels; i += 32) {
    const LabelPlace place = label_place(level, tile, i);
    int label = label_at(a.ids, place.row);
    if (level.planes && label >= 0)
      label = uint32_t(label) % (1u << level.in_line_log2) == place.in_line ? label >> level.in_line_log2 : kBackground;
    labels[i] = label;
    positive |= label >= 0;
    ignored |= label == kIgnored;
    bad |= label == kBad;
  }
  __syncwarp();  // other lanes read them; a ballot orders no memory
  return {__ballot_sync(~0u, positive) != 0, __ballot_sync(~0u, ignored) != 0, __ballot_sync(~0u, bad) != 0, false};
}

// One tile, element by element: any label, weight, alpha and alignment. Returns this lane's share of the loss.
template <class scalar_t, class Loss, class acc_t>
__device__ acc_t careful_tile(const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level,
    const PyramidTile& tile, uint32_t lane, const int* labels, acc_t weight, acc_t factor, const Loss& loss) {
  using Math = typename CarefulMath<scalar_t>::type;
  acc_t sum = 0;
#pragma unroll 1
  for (uint32_t i = lane; i < tile.lines * level.tile_columns.value; i += 32) {
    const uint32_t line = quotient(i, level.tile_columns), column = i - line * level.tile_columns.value;
    if (column >= tile.columns) continue;
    const int64_t element = tile.first_element + int64_t(line) * level.columns + column;
    // of a line of several classes the line: then nothing but labels comes by the class, and these tell lines
    const uint32_t c = level.planes ? tile.first_line + line : column;
    const int label = labels ? labels[level.planes ? column : line] : kBackground;
    const Alpha<acc_t> alpha = alpha_of(a.common, c);
    const bool positive = label == int(c);
    const int64_t row = label_place(level, tile, level.planes ? column : line).row;
    Term<acc_t> t =
        id_term<Math>(positive, widen(level.inputs[element]), a.scores ? a.scores + row : nullptr, alpha, loss);
    const acc_t w = a.common.weight && !a.weight_per_image ? a.common.weight[row] : weight;
    t = scaled(t, w, w * factor);
    if (label == kBad) t = {acc_t(NAN), acc_t(NAN)};
    if (label == kIgnored) t = {0, 0};  // whatever the logit, the weight and the factor are
    sum += t.value;
    if (level.gradient) level.gradient[element] = narrow<scalar_t>(t.gradient);
  }
  return sum;
}

template <Flow flow, class scalar_t, class Loss>
__device__ float stream_tile(const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level,
    const PyramidTile& tile, uint32_t lane, int* labels, bool special, float scale, float factor, const Loss& loss) {
  constexpr uint32_t size = kVector<scalar_t>;
  if (level.planes && lane * size >= tile.columns) return 0;
  const int64_t step = level.planes ? int64_t(level.columns) : 32 * size;
  Lines<scalar_t> walk{step, a, level, tile};
  if (special) walk.heed(labels + lane * size);
  NegativeStream<scalar_t, flow, Loss, Lines<scalar_t>> stream{level.inputs + tile.first_element, nullptr,
      flow == Flow::loss ? nullptr : level.gradient + tile.first_element, {scale * factor}, loss, walk};
  stream.run(level.planes ? 32 * tile.lines : tile.lines * tile.columns / size, lane);
  return scale * stream.sum;
}

template <class scalar_t, class Loss>
__device__ acc_of<scalar_t> pyramid_tile(const PyramidArguments<scalar_t>& a, const LevelArguments<scalar_t>& level,
    const PyramidTile& tile, uint32_t lane, int* labels, acc_of<scalar_t> factor, const Loss& loss) {
  const Found found = read_labels(a, level, tile, lane, labels);
  const acc_of<scalar_t> weight = a.weight_per_image ? a.common.weight[tile.image] : acc_of<scalar_t>(1);
  if constexpr (sizeof(scalar_t) < 8) {
    const float scale = a.common.alpha_negative * weight;
    const bool fits =
        level.vectors && (level.planes ? vanishes<Loss> || !found.ignored
                                       : !(found.positive || found.ignored) && tile.lines % kTileUnit == 0);
    if (a.common.flow != Flow::careful && fits && !found.bad && fabsf(scale * factor) < INFINITY) {
      const bool special = found.positive || found.ignored;
      if (a.common.flow == Flow::gradient)
        return stream_tile<Flow::gradient>(a, level, tile, lane, labels, special, scale, factor, loss);
      return stream_tile<Flow::loss>(a, level, tile, lane, labels, special, scale, factor, loss);
    }
  }
  return careful_tile(a, level, tile, lane, found.nothing ? nullptr : labels, weight, factor, loss);
}

// As of rows, but halves of the papers' exponent, which are bound by what a multiprocessor issues, want one block more:
// here positives' formulas, which are calls, leave 64 registers enough.
template <class scalar_t, class Loss>
constexpr int resident_blocks_of_levels() {
  const bool has_room = sizeof(scalar_t) == 2 && !Loss::mirrors && !has_any_power<Loss>;
  return has_room ? 4 : resident_blocks<scalar_t, IdTargets<float>, Loss>();
}

template <class scalar_t, class Loss>
__global__ __launch_bounds__(kThreads, (resident_blocks_of_levels<scalar_t, Loss>())) void pyramid_kernel(
    const __grid_constant__ PyramidArguments<scalar_t> a, const __grid_constant__ Loss loss) {
  using acc_t = acc_of<scalar_t>;
  FOCAL_EXT_SHARED(int, labels_of_warp, [kWarps][kMaxLabels<scalar_t>]);
  FOCAL_EXT_SHARED(acc_t, factor_of_warp, [kWarps]);  // not in a register: the hot loop needs all 64
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const acc_t factor = gradient_factor(a.common);
  if (lane == 0) factor_of_warp[warp] = factor;
  __syncwarp();
  acc_t sum = 0;
  uint32_t level = 0;
  for (uint32_t index = blockIdx.x * kWarps + warp; index < a.tiles; index += gridDim.x * kWarps) {
    while (level + 1 < a.level_count && index >= a.levels[level + 1].first_tile) ++level;
    const LevelArguments<scalar_t>& here = a.levels[level];
    sum += pyramid_tile(a, here, tile_at(a, here, index), lane, labels_of_warp[warp], factor_of_warp[warp], loss);
    __syncwarp();  // the next tile's labels overwrite this one's
  }
  if (!a.common.partials) return;
  const acc_t total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.common.partials[blockIdx.x] = total;
}

}  // namespace focal_ext::cuda

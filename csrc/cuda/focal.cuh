// Owns: the focal kernel over rows [N, C]: warps take tiles, a tile of negatives streams, any other goes element by element.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "stream.cuh"

namespace focal_ext::cuda {

template <class scalar_t>
struct CarefulMath {
  using type = CarefulFloat;
};
template <>
struct CarefulMath<double> {
  using type = Double;
};

// Row of the tile's i-th element, without a division: the reciprocal is rounded down, so the product is at most one too small.
inline __device__ uint32_t row_of(uint32_t i, uint32_t classes, uint32_t reciprocal) {
  const uint32_t row = __umulhi(i, reciprocal);
  return i - row * classes >= classes ? row + 1 : row;
}

// One tile, element by element: positives, ignored and bad rows, weights, alphas per class, any alignment, the last rows.
// Returns this lane's share of the loss.
template <class scalar_t, class Targets, class Loss, class acc_t>
__device__ acc_t careful_tile(
    const Arguments<scalar_t>& a, const Targets& targets, const Tile& tile, uint32_t lane, const int* labels, acc_t factor, const Loss& loss) {
  using Math = typename CarefulMath<scalar_t>::type;
  constexpr uint32_t kBatch = has_any_power<Loss> || !Loss::mirrors ? 1 : 2;  // loads in flight per lane; more do not fit 64 registers
  acc_t sum = 0;
  for (uint32_t first = lane; first < tile.elements; first += 32 * kBatch) {
    acc_t x[kBatch] = {};
#pragma unroll
    for (uint32_t u = 0; u < kBatch; ++u)
      if (first + 32 * u < tile.elements || FOCAL_EXT_PLANTED(tail_read)) x[u] = widen(a.inputs[tile.first_element + first + 32 * u]);
#pragma unroll
    for (uint32_t u = 0; u < kBatch; ++u) {
      const uint32_t i = first + 32 * u;
      if (i >= tile.elements) break;
      const uint32_t row = row_of(i, a.classes, a.classes_reciprocal), c = i - row * a.classes;
      const int64_t element = tile.first_element + i;
      Term<acc_t> t = targets.template term<Math>(a, tile, i, row, c, x[u], labels, loss);
      if (a.weight) {
        const acc_t weight = a.weight[(tile.first_row + row) * a.weight_row_stride + c * a.weight_class_stride];
        t.value *= weight;
        t.gradient *= weight;
      }
      if (a.upstream_per_element) t.gradient *= widen(a.upstream_per_element[element]);
      t.gradient *= factor;
      if (targets.is_ignored(labels, row)) t = {0, 0};  // whatever the logit, the weight and the factor are
      sum += t.value;
      if (a.loss_map) a.loss_map[element] = narrow<scalar_t>(t.value);
      if (a.gradient) a.gradient[element] = narrow<scalar_t>(t.gradient);
    }
  }
  return sum;
}

// The choice stands outside the loop.
template <class scalar_t, class Loss, class acc_t>
__device__ acc_t careful_tile(
    const Arguments<scalar_t>& a, const EitherTargets<scalar_t>& targets, const Tile& tile, uint32_t lane, const int* labels, acc_t factor, const Loss& loss) {
  if (targets.is_dense) return careful_tile(a, targets.dense, tile, lane, labels, factor, loss);
  return careful_tile(a, targets.ids, tile, lane, labels, factor, loss);
}

template <Flow flow, class scalar_t, class Loss>
__device__ float negative_tile(const Arguments<scalar_t>& a, const Tile& tile, uint32_t lane, float factor, const Loss& loss) {
  NegativeStream<scalar_t, flow, Loss> stream{a.inputs + tile.first_element, flow == Flow::chain ? a.upstream_per_element + tile.first_element : nullptr,
      flow == Flow::loss ? nullptr : (flow == Flow::loss_map ? a.loss_map : a.gradient) + tile.first_element,
      flow == Flow::loss_map ? a.alpha_negative : a.alpha_negative * factor, loss};
  stream.run(tile.elements / kVector<scalar_t>, lane);
  return a.alpha_negative * stream.sum;
}

template <class scalar_t, class Targets, class Loss, class acc_t>
__device__ acc_t one_tile(
    Flow flow, const Arguments<scalar_t>& a, const Targets& targets, const Tile& tile, uint32_t lane, const int* labels, acc_t factor, const Loss& loss) {
  if constexpr (sizeof(scalar_t) < 8) {
    if (flow == Flow::gradient) return negative_tile<Flow::gradient>(a, tile, lane, factor, loss);
    if (flow == Flow::loss) return negative_tile<Flow::loss>(a, tile, lane, factor, loss);
    if (flow == Flow::loss_map) return negative_tile<Flow::loss_map>(a, tile, lane, factor, loss);
    if (flow == Flow::chain) return negative_tile<Flow::chain>(a, tile, lane, factor, loss);
  }
  return careful_tile(a, targets, tile, lane, labels, factor, loss);
}

// Blocks that registers must let a multiprocessor hold. 4 of 8 warps with 64 bytes each in flight cover the memory's latency and
// leave 64 registers a thread, 3 leave 80. Bound by arithmetic are fp64, and any power of a smoothed label, which spills at 80.
template <class scalar_t, class Targets, class Loss>
constexpr int resident_blocks() {
  constexpr bool is_ids = std::is_same_v<Targets, IdTargets<float>>;
  if (sizeof(scalar_t) == 8 || std::is_same_v<Loss, SmoothedSigmoidFocal<AnyModulator>>) return 2;
  return !Loss::mirrors || (has_any_power<Loss> && !is_ids) ? 3 : 4;
}

template <class scalar_t, class Targets, class Loss>
__global__ __launch_bounds__(kThreads, (resident_blocks<scalar_t, Targets, Loss>())) void focal_kernel(
    const __grid_constant__ Arguments<scalar_t> a, const __grid_constant__ Targets targets, const __grid_constant__ Loss loss) {
  using acc_t = acc_of<scalar_t>;
  FOCAL_EXT_SHARED(int, labels_of_warp, [kWarps][kMaxTileRows]);
  FOCAL_EXT_SHARED(acc_t, factor_of_warp, [kWarps]);  // not in a register: the hot loop needs all 64
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* const labels = labels_of_warp[warp];
  const acc_t factor = gradient_factor(a);
  if (lane == 0) factor_of_warp[warp] = factor;
  __syncwarp();
  acc_t sum = 0;
  for (uint32_t index = blockIdx.x * kWarps + warp; index < a.tiles; index += gridDim.x * kWarps) {
    const Tile tile = tile_at(a, index);
    const bool negative = targets.all_negative(a, tile, lane, labels) && may_stream(a, tile);
    sum += one_tile(negative ? a.flow : Flow::careful, a, targets, tile, lane, labels, factor_of_warp[warp], loss);
    if (!FOCAL_EXT_PLANTED(overwritten_labels)) __syncwarp();  // the next tile's labels overwrite this one's
  }
  if (!a.partials) return;
  const acc_t total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = total;
}

}  // namespace focal_ext::cuda

// Owns: the focal kernel over rows [N, C]: warps take tiles. Negatives with special rows of ids among them stream,
// and dense targets as far as dense_stream.cuh takes them; the rest goes element by element.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "dense_stream.cuh"
#include "weights.cuh"

namespace focal_ext::cuda {

template <class scalar_t>
struct CarefulMath {
  using type = CarefulFloat;
};
template <>
struct CarefulMath<double> {
  using type = Double;
};

// A tile from element `from` on, element by element: positives, ignored and bad rows, weights, alphas per class, any
// alignment, the last rows. Returns this lane's share of the loss.
template <class scalar_t, class Targets, class Loss, class acc_t>
__device__ acc_t careful_tile(const Arguments<scalar_t>& a, const Targets& targets, const Tile tile, uint32_t from,
    uint32_t lane, const int* labels, acc_t factor, const Loss& loss) {
  using Math = typename CarefulMath<scalar_t>::type;
  // loads in flight per lane; more do not fit 64 registers
  constexpr uint32_t kBatch = has_any_power<Loss> || !Loss::mirrors ? 1 : 2;
  acc_t sum = 0;
  for (uint32_t first = from + lane; first < tile.elements; first += 32 * kBatch) {
    acc_t x[kBatch] = {}, own[kBatch] = {};
#pragma unroll
    for (uint32_t u = 0; u < kBatch; ++u)
      if (first + 32 * u < tile.elements) {
        x[u] = widen(a.inputs[tile.first_element + first + 32 * u]);
        own[u] = targets.target_at(tile, first + 32 * u);
      }
#pragma unroll
    for (uint32_t u = 0; u < kBatch; ++u) {
      const uint32_t i = first + 32 * u;
      if (i >= tile.elements) break;
      const auto [row, c] = place_of(a, tile, i);
      const Term<acc_t> t = targets.template term<Math>(a, tile, row, c, x[u], own[u], labels, loss);
      sum += finished(a, tile, i, row, c, t, targets.is_ignored(own[u], labels, row), factor);
    }
  }
  return sum;
}

// The choice stands outside the loop.
template <class scalar_t, class Loss, class acc_t>
__device__ acc_t careful_tile(const Arguments<scalar_t>& a, const EitherTargets<scalar_t>& targets, const Tile& tile,
    uint32_t from, uint32_t lane, const int* labels, acc_t factor, const Loss& loss) {
  if (targets.is_dense) return careful_tile(a, targets.dense, tile, from, lane, labels, factor, loss);
  return careful_tile(a, targets.ids, tile, from, lane, labels, factor, loss);
}

// What a stream up to element `end` has left out, one lane for each row: a positive's term, and NaN for all of a bad
// row.
template <class scalar_t, class Loss>
__device__ float left_out(const Arguments<scalar_t>& a, const IdTargets<float>& ids, const Tile& tile, uint32_t end,
    uint32_t lane, const int* labels, const float* logits, float factor, const Loss& loss) {
  __syncwarp();  // the stream's lanes have kept the logits, and written zeros where the results go
  // the tile may begin in the middle of its first row
  const auto from_class = [&](uint32_t row) { return row == 0 ? tile.offset : 0; };
  float sum = 0;
#pragma unroll 1
  for (uint32_t row = lane; row < tile.rows; row += 32) {
    const int label = labels[row];
    if (label < 0 && label != kBad) continue;
    const uint32_t first = label >= 0 ? uint32_t(label) : 0, last = label >= 0 ? first : a.classes - 1;
    for (uint32_t c = first > from_class(row) ? first : from_class(row); c <= last; ++c) {
      const uint32_t i = row * a.classes + c - tile.offset;
      if (i >= end) break;
      const Term<float> t = label >= 0 ? ids.template term<CarefulFloat>(a, tile, row, c, logits[row], 0, labels, loss)
                                       : Term<float>{NAN, NAN};
      sum += finished(a, tile, i, row, c, t, false, factor);
    }
  }
  return sum;
}

template <Flow flow, Factors factors, class scalar_t, class Loss, class Coefficients>
__device__ float run_stream(const Arguments<scalar_t>& a, uint32_t lane,
    const Rows<scalar_t, vanishes<Loss>, factors>& walk, const Coefficients& k, const Loss& loss) {
  const int64_t first = walk.tile.first_element;
  scalar_t* const results = flow == Flow::loss_map ? a.loss_map : a.gradient;
  NegativeStream<scalar_t, flow, Loss, Rows<scalar_t, vanishes<Loss>, factors>, Coefficients> stream{a.inputs + first,
      flow == Flow::chain ? a.upstream_per_element + first : nullptr, flow == Flow::loss ? nullptr : results + first, k,
      loss, walk, results != nullptr};
  stream.run(walk.vectors(), lane);
  return stream.sum;
}

// Whether loss maps, and gradients times a map, stream: not of the two longest formulas, which are not a detector's
// papers'. Their loops would take a third of a megabyte; such calls go element by element.
template <class Loss>
constexpr bool streams_maps = true;
template <>
inline constexpr bool streams_maps<SmoothedSigmoidFocal<AnyModulator>> = false;
template <class Positive>
inline constexpr bool streams_maps<Asymmetric<AnyModulator, Positive, true>> = false;

// The sum of values without own.scale. The choice stands outside the loops: one factor for each flow, others for loss
// and gradient alone.
template <Factors factors, class scalar_t, class Loss>
__device__ float stream_tile(const Arguments<scalar_t>& a, uint32_t lane,
    const Rows<scalar_t, vanishes<Loss>, factors>& walk, const OfWarp<float, factors>& own, const float* class_slots,
    const Loss& loss) {
  const float factor = own.scale * own.factor;
  const Position<scalar_t> at{a, walk.tile.offset + lane * kVector<scalar_t>};
  if constexpr (factors == Factors::classes)
    return run_stream<Flow::gradient, factors>(a, lane, walk, PerClass<scalar_t>{factor, class_slots, at}, loss);
  if constexpr (factors == Factors::rows) {
    if (!walk.weights) return run_stream<Flow::gradient, factors>(a, lane, walk, Common{factor}, loss);
    if (a.classes % kVector<scalar_t> == 0)
      return run_stream<Flow::gradient, factors>(a, lane, walk, PerRow<scalar_t, true>{factor, walk.weights, at}, loss);
    return run_stream<Flow::gradient, factors>(a, lane, walk, PerRow<scalar_t, false>{factor, walk.weights, at}, loss);
  }
  if constexpr (factors == Factors::one) {
    if (a.flow == Flow::gradient) return run_stream<Flow::gradient, factors>(a, lane, walk, Uniform{factor}, loss);
    if constexpr (streams_maps<Loss>) {
      if (a.flow == Flow::loss_map) return run_stream<Flow::loss_map, factors>(a, lane, walk, Uniform{own.scale}, loss);
      if (a.flow == Flow::chain) return run_stream<Flow::chain, factors>(a, lane, walk, Uniform{factor}, loss);
    }
    return run_stream<Flow::loss, factors>(a, lane, walk, Uniform{factor}, loss);
  }
}

// Of dense targets that are not all 0, or may not be: how many logits are done.
template <Factors factors, class scalar_t, class Loss>
__device__ uint32_t dense_tile(const Arguments<scalar_t>& a, const DenseTargets<scalar_t>& targets, uint32_t lane,
    OfWarp<float, factors>& own, float& sum, const Loss& loss) {
  const bool one = read_weights(a, lane, own, false) == Weights::one;
  if (!one || !(fabsf(own.scale * own.factor) < INFINITY)) return 0;
  DenseStream<scalar_t, Loss> stream{a, targets, own.tile, loss, own.scale, own.factor};
  const uint32_t done = stream.run(lane);
  sum = stream.sum;
  return done;
}

template <Factors factors, class scalar_t, class Targets, class Loss>
__device__ acc_of<scalar_t> one_tile(const Arguments<scalar_t>& a, const Targets& targets, uint32_t lane,
    OfWarp<acc_of<scalar_t>, factors>& own, const float* class_slots, const Loss& loss) {
  const Tile& tile = own.tile;
  constexpr bool may_stream = may_stream_dense<Targets, Loss, factors> && has_hot_loop<Loss> && sizeof(scalar_t) < 8;
  const bool special = (may_stream && targets.streams_dense() && tile.elements <= kShortDenseTile) ||
                       targets.has_special(a, tile, lane, own.labels);
  acc_of<scalar_t> sum = 0;
  uint32_t done = 0;
  if constexpr (sizeof(scalar_t) < 8 && has_hot_loop<Loss>) {
    Weights weights = Weights::no_stream;
    if (special && !targets.has_ids()) {
      if constexpr (may_stream)
        if (targets.streams_dense()) done = dense_tile(a, targets.dense_or_none(), lane, own, sum, loss);
    } else if (a.flow != Flow::careful) {
      weights = read_weights(a, lane, own, targets.has_ids());
    }
    if (weights != Weights::no_stream && fabsf(own.scale * own.factor) < INFINITY) {
      const int* const labels = targets.has_ids() ? own.labels : nullptr;
      const Rows<scalar_t, vanishes<Loss>, factors> walk{a, tile, labels, own.logits,
          special ? marks_of<scalar_t>(tile, a.classes, labels, lane) : 0,
          weights == Weights::rows ? own.weights : nullptr};
      done = walk.vectors() * kVector<scalar_t>;
      sum = stream_tile(a, lane, walk, own, class_slots, loss);
      sum *= own.scale;
      if constexpr (requires { targets.ids_or_none(); })
        if (special)
          sum += left_out(a, targets.ids_or_none(), tile, done, lane, own.labels, own.logits, own.factor, loss);
    }
  }
  if (done < tile.elements) sum += careful_tile(a, targets, tile, done, lane, own.labels, own.factor, loss);
  return sum;
}

// Blocks that registers must let a multiprocessor hold. 4 of 8 warps with 64 bytes each in flight cover the memory's
// latency and leave 64 registers a thread, 3 leave 80. Bound by arithmetic are fp64, and any powers of smoothed labels
// and of a clip, which spill at 80.
template <class scalar_t, class Targets, class Loss>
constexpr int resident_blocks() {
  constexpr bool is_ids = std::is_same_v<Targets, IdTargets<float>>;
  constexpr bool is_long = std::is_same_v<Loss, SmoothedSigmoidFocal<AnyModulator>> ||
                           std::is_same_v<Loss, Asymmetric<AnyModulator, AnyModulator, true>>;
  if (sizeof(scalar_t) == 8 || is_long) return 2;
  return !Loss::mirrors || (has_any_power<Loss> && !is_ids) ? 3 : 4;
}

template <class scalar_t, class Targets, class Loss, Factors factors>
__global__ __launch_bounds__(kThreads, (resident_blocks<scalar_t, Targets, Loss>())) void focal_kernel(
    const __grid_constant__ Arguments<scalar_t> a, const __grid_constant__ Targets targets,
    const __grid_constant__ Loss loss) {
  using acc_t = acc_of<scalar_t>;
  using Own = OfWarp<acc_t, factors>;
  FOCAL_EXT_SHARED(Own, of_warp, [kWarps]);
  const float* class_slots = nullptr;
  if constexpr (factors == Factors::classes) {
    FOCAL_EXT_SHARED(float4, slots, [kClassSlots / 4]);  // which aligns them
    class_slots = reinterpret_cast<const float*>(slots);
    fill_class_slots(reinterpret_cast<float*>(slots), a);
  }
  const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  Own& own = of_warp[warp];
  const acc_t factor = gradient_factor(a);
  if (lane == 0) own.factor = factor;
  __syncwarp();
  acc_t sum = 0;
  for (uint32_t index = blockIdx.x * kWarps + warp; index < a.tiles; index += gridDim.x * kWarps) {
    if (lane == 0) {
      const uint32_t group = quotient(index, a.batch.tiles);
      const Tile tile = tile_at(a, index, group);
      own.tile = tile;  // a store of its own: ThreadSanitizer does not see how a result is written
      if (a.batch.factors) own.factor = a.batch.factors[group];
    }
    __syncwarp();
    sum += one_tile(a, targets, lane, own, class_slots, loss);
    if (a.batch.factors) {
#pragma unroll 1  // a rare loop, in every kernel of the library
      for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
      if (lane == 0) a.partials[index] = sum;
      sum = 0;
    }
    __syncwarp();  // the next tile's labels overwrite this one's
  }
  if (!a.partials || a.batch.factors) return;
  const acc_t total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = total;
}

}  // namespace focal_ext::cuda

// Owns: the softmax kernel for class ids over planes: neighbouring positions in neighbouring lanes, two readings of the
// logits.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "softmax.cuh"

namespace focal_ext::cuda {

// Classes of a position whose loads are in flight at once. A lane has one position: two would be twice as much code,
// and memory is kept busy by one.
constexpr uint32_t kInFlight = 8;

// Of all types of logits but double, told at run time: the library has one kernel.
struct PlanesArguments {
  // its rows are all anchors of all levels; logits and gradient are those of this level, in `scalar`
  SoftmaxArguments<float> common;
  Scalar scalar;
  int64_t positions;  // of a matrix of classes by positions, one for each image and anchor
  int64_t image_rows, first_row;  // of all levels; of this one in an image
  uint32_t anchors;
  uint32_t tiles_of_matrix, tiles;  // of 32 lanes
  uint32_t warps;  // that share a tile, each with classes of its own: 1 or kWarps
  bool weight_per_image;
};

// Calls f with memory of logits as it is stored.
template <class F>
__device__ void with_stored(const void* memory, Scalar scalar, F f) {
  if (scalar == Scalar::f32) f(static_cast<const float*>(memory));
  else if (scalar == Scalar::bf16) f(static_cast<const __nv_bfloat16*>(memory));
  else f(static_cast<const __half*>(memory));
}
inline __device__ float read(const void* memory, Scalar scalar, int64_t i) {
  float x = 0;
  with_stored(memory, scalar, [&](const auto* from) { x = widen(from[i]); });
  return x;
}
inline __device__ void write(void* memory, Scalar scalar, int64_t i, float x) {
  with_stored(memory, scalar,
      [&]<class scalar_t>(const scalar_t*) { static_cast<scalar_t*>(memory)[i] = narrow<scalar_t>(x); });
}

// p^gamma for every gamma: used once a row, and a kernel for each would be four times as much code.
struct ToldModulator {
  static constexpr bool is_one = false;
  const AnyModulator& any;
  int whole;  // 0, 1 or 2; else it is no such

  template <class Math>
  __device__ typename Math::value_t gamma() const {
    return any.gamma<Math>();
  }
  template <class Math, class T>
  __device__ T of_logarithm(T u, T minus_log) const {
    return whole <= 2 ? of<Math>(u) : any.of_logarithm<Math>(u, minus_log);
  }
  template <class Math, class T>
  __device__ T of(T u) const {
    return whole == 0 ? T(1) : whole == 1 ? u : whole == 2 ? u * u : any.of<Math>(u);
  }
};

// What a lane knows of a position when it has seen some classes: the largest logit, the sum of the exponentials but
// that of the label, the mean of top - x times the share of those seen.
struct Seen {
  float top = -INFINITY, others = 0, mean_distance = 0;

  // For a larger top; `seen`: the share of classes behind the sums.
  __device__ void raise(float to, float seen) {
    others *= exp_below<RowFloat>(top, to);
    if (seen > 0 && to > top) mean_distance += seen * (to - top);
    top = to;
  }
};

// A lane's position, with all classes.
struct PlanesPosition {
  const PlanesArguments& a;
  int64_t first;  // its logit of the first class
  bool exists;

  // f(class, logit) for the classes of a warp; before(logits, how many) for each kInFlight of them, of which those
  // beyond the last are -inf.
  template <class Before, class F>
  __device__ void each(uint32_t warp, Before before, F f) const {
    const uint32_t classes = exists ? a.common.classes : 0;
    for (uint32_t c = warp * kInFlight; c < classes; c += a.warps * kInFlight) {
      float x[kInFlight];
      with_stored(a.common.inputs, a.scalar, [&](const auto* logits) {
        const auto* const from = logits + first + c * a.positions;
#pragma unroll
        for (uint32_t k = 0; k < kInFlight; ++k) x[k] = c + k < classes ? widen(from[k * a.positions]) : -INFINITY;
      });
      before(x, classes - c < kInFlight ? classes - c : kInFlight);
#pragma unroll
      for (uint32_t k = 0; k < kInFlight; ++k)
        if (c + k < classes) f(c + k, x[k]);
    }
  }
};

// What the warps of a tile saw, folded in one order in every warp. All threads of the block call it.
inline __device__ Seen fold_seen(const PlanesArguments& a, const Seen& seen, float share) {
  FOCAL_EXT_SHARED(Seen, slots, [kThreads]);
  __syncthreads();  // all have read what the last tile left there
  slots[threadIdx.x] = seen;
  __syncthreads();
  Seen all;
  uint32_t classes = 0;
#pragma unroll 1
  for (uint32_t warp = 0; warp < kWarps; ++warp) {
    constexpr uint32_t round = kWarps * kInFlight;
    const uint32_t rest = a.common.classes % round, before = warp * kInFlight;  // of the last round
    const uint32_t last = rest <= before              ? 0
                          : rest - before < kInFlight ? rest - before
                                                      : kInFlight,
                   own = a.common.classes / round * kInFlight + last;
    if (own == 0) continue;
    Seen one = slots[warp * 32 + threadIdx.x % 32];
    const float top = one.top > all.top ? one.top : all.top;
    one.raise(top, share * float(own));
    all.raise(top, share * float(classes));
    all.others += one.others;
    all.mean_distance += one.mean_distance;
    classes += own;
  }
  return all;
}

// What makes a position's gradient; a constant everywhere where it is not read.
struct PositionFactors {
  float value, others, shift, own;
};

inline __device__ PositionFactors factors_of(
    const PlanesArguments& a, const Seen& seen, float x_y, int label, int64_t row, int64_t image, float factor) {
  const SoftmaxArguments<float>& s = a.common;
  if (label < 0) {
    const float nothing = label == kIgnored ? 0.f : NAN;
    return {nothing, 0, 0, nothing};
  }
  const float alpha = s.alpha ? s.alpha[label] : s.alpha_of_all;
  float distance = x_y == seen.top ? 0.f : seen.top - x_y, mean_distance = seen.mean_distance;
  if (alpha == 0) distance = almost_finite(distance), mean_distance = almost_finite(mean_distance);
  const float own = exp_below<RowFloat>(x_y, seen.top);
  const ToldModulator modulator = {s.any, s.gamma == 0 ? 0 : s.gamma == 1 ? 1 : s.gamma == 2 ? 2 : 3};
  const SoftmaxRow<float> result = s.smoothing == 0
                                       ? softmax_focal_row<RowFloat>(own, seen.others, distance, modulator)
                                       : smoothed_softmax_focal_row<RowFloat>(own, seen.others, distance, mean_distance,
                                             s.smoothing, s.kept, float(s.classes), modulator);
  float coefficient = alpha * (s.weight ? s.weight[a.weight_per_image ? image : row] : 1.f);
  // As in Top: beside an infinite top the exponentials of its equals are 1, all others 0.
  if (!(fabsf(seen.top) < INFINITY) && seen.others + (x_y == seen.top ? 1.f : 0.f) > 1.f) coefficient = NAN;
  const float scale = coefficient * factor * (s.upstream_per_row ? read(s.upstream_per_row, a.scalar, row) : 1.f);
  return {coefficient * result.value, scale * result.others, scale * result.shift, scale * result.own};
}

__global__ __launch_bounds__(kThreads, 4) void softmax_planes_kernel(const __grid_constant__ PlanesArguments a) {
  const SoftmaxArguments<float>& s = a.common;
  const float factor = gradient_factor(s), share = 1.f / float(s.classes);
  const uint32_t tiles_at_once = kWarps / a.warps, warp = threadIdx.x / 32, part = warp % a.warps;
  float sum = 0;
  for (uint32_t first = blockIdx.x * tiles_at_once; first < a.tiles; first += gridDim.x * tiles_at_once) {
    const uint32_t index = first + warp / a.warps, matrix = index / a.tiles_of_matrix, image = matrix / a.anchors,
                   anchor = matrix - image * a.anchors;
    const int64_t at = int64_t(index - matrix * a.tiles_of_matrix) * 32 + threadIdx.x % 32;
    const PlanesPosition position = {
        a, int64_t(matrix) * s.classes * a.positions + at, index < a.tiles && at < a.positions};
    const int64_t row = int64_t(image) * a.image_rows + a.first_row + at * a.anchors + anchor;
    const int label = position.exists ? label_at(s.ids, row) : kIgnored;
    // Before the gradient replaces it.
    const float x_y = label >= 0 ? read(s.inputs, a.scalar, position.first + label * a.positions) : 0.f;
    Seen seen;
    uint32_t classes = 0;
    position.each(part, [&](const float (&x)[kInFlight], uint32_t count) {
      float top = seen.top;
#pragma unroll
      for (uint32_t k = 0; k < kInFlight; ++k) top = x[k] > top ? x[k] : top;
      seen.raise(top, share * float(classes));
      classes += count;
    }, [&](uint32_t c, float x) {
      seen.others += exp_below<RowFloat>(x, seen.top) * (int(c) == label ? 0.f : 1.f);
      if (s.smoothing != 0) seen.mean_distance += x == seen.top ? 0.f : (seen.top - x) * share;
    });
    if (a.warps > 1) seen = fold_seen(a, seen, share);
    const PositionFactors f = factors_of(a, seen, x_y, label, row, image, factor);
    if (part == 0 && position.exists) {
      sum += f.value;
      if (s.loss_map) write(s.loss_map, a.scalar, row, f.value);
    }
    if (!s.gradient) continue;
    position.each(part, [](const float (&)[kInFlight], uint32_t) {}, [&](uint32_t c, float x) {
      const float other = f.others * exp_below<RowFloat>(x, seen.top) - f.shift;
      write(s.gradient, a.scalar, position.first + c * a.positions, label < 0 || label == int(c) ? f.own : other);
    });
  }
  if (!s.partials) return;
  const float total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) s.partials[blockIdx.x] = total;
}

}  // namespace focal_ext::cuda

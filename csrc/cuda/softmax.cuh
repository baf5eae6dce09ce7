// Owns: what the softmax kernels share: their argument, passes over a row's logits, and the kernel for class ids.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "../losses/device_primitives.h"
#include "../losses/softmax_focal.h"
#include "group.cuh"

namespace focal_ext::cuda {

struct RowFloat : DeviceFloat {
  static FOCAL_EXT_INLINE void log_ratio(float u, float rest, float& ratio, float& inverse) {
    HostFloat::log_ratio(u, rest, ratio, inverse);
  }
};
template <class scalar_t>
using RowMath = std::conditional_t<sizeof(scalar_t) == 8, Double, RowFloat>;

template <class scalar_t>
struct SoftmaxArguments {
  using acc_t = acc_of<scalar_t>;

  const scalar_t* inputs;  // may be `gradient` itself: never read through the read-only cache
  scalar_t* gradient;
  scalar_t* loss_map;
  acc_t* partials;  // one per block, of groups one per row; or null
  int64_t rows;
  RowBatch<acc_t> batch;
  uint32_t classes;
  Group group;
  bool vectors;  // every row begins at a 16-byte boundary

  Ids ids;
  acc_t ignored;  // of dense targets; NaN: none
  acc_t alpha_of_all;
  const acc_t* alpha;
  const acc_t* weight;
  int64_t weight_row_stride;
  acc_t smoothing, kept;  // 1 - smoothing
  double gamma;
  WholeModulator<0> zero;
  WholeModulator<1> one;
  WholeModulator<2> two;
  AnyModulator any;

  Normaliser<acc_t> normaliser;
  const acc_t* upstream;             // one factor for the whole gradient, or null
  const scalar_t* upstream_per_row;  // or null
};

// Calls f with the modulator, the same one in the whole grid. A kernel for each would buy little: for class ids it is
// used once a row.
template <class scalar_t, class F>
__device__ void with_gamma(const SoftmaxArguments<scalar_t>& a, F f) {
  if constexpr (sizeof(scalar_t) == 8) return f(a.any);
  if (a.gamma == 0) f(a.zero);
  else if (a.gamma == 1) f(a.one);
  else if (a.gamma == 2) f(a.two);
  else f(a.any);
}

// A lane's share of one row. Three passes read it; the last two find it in the first-level cache.
template <class scalar_t>
struct RowPass {
  using acc_t = acc_of<scalar_t>;
  const SoftmaxArguments<scalar_t>& a;
  const scalar_t* x;
  uint32_t classes;  // 0: there is no row, or it is not read

  __device__ acc_t at(uint32_t c) const { return widen(x[c]); }

  // Whether `each` and `put` of this lane visit the class.
  __device__ bool owns(uint32_t c) const {
    return (a.vectors ? c / uint32_t(kVector<scalar_t>) : c) % a.group.size == a.group.lane();
  }

  // f(class, logit); `wide`: by vectors where there are any, else a long f has one copy instead of nine.
  template <bool wide = true, class F>
  __device__ void each(F f) const {
    if constexpr (wide && sizeof(scalar_t) < 8) {
      constexpr uint32_t size = kVector<scalar_t>;
      if (a.vectors) {
        for (uint32_t c = a.group.lane() * size; c < classes; c += a.group.size * size) {
          float values[size];
          unpack<scalar_t>(*reinterpret_cast<const uint4*>(x + c), values);
#pragma unroll
          for (uint32_t j = 0; j < size; ++j) f(c + j, values[j]);
        }
        return;
      }
    }
#pragma unroll(wide ? 2 : 1)
    for (uint32_t c = a.group.lane(); c < classes; c += a.group.size) f(c, at(c));
  }

  // gradient[class] = f(class, logit); the gradient may replace the logits.
  template <bool wide = true, class F>
  __device__ void put(scalar_t* gradient, F f) const {
    if constexpr (wide && sizeof(scalar_t) < 8) {
      constexpr uint32_t size = kVector<scalar_t>;
      if (a.vectors) {
        for (uint32_t c = a.group.lane() * size; c < classes; c += a.group.size * size) {
          float values[size];
          unpack<scalar_t>(*reinterpret_cast<const uint4*>(x + c), values);
#pragma unroll
          for (uint32_t j = 0; j < size; ++j) values[j] = f(c + j, values[j]);
          *reinterpret_cast<uint4*>(gradient + c) = pack<scalar_t>(values);
        }
        return;
      }
    }
#pragma unroll(wide ? 2 : 1)
    for (uint32_t c = a.group.lane(); c < classes; c += a.group.size) gradient[c] = narrow<scalar_t>(f(c, at(c)));
  }
};

// The largest logit of a row and its place, and whether an infinite one leaves the row a limit.
template <class scalar_t>
struct Top {
  using acc_t = acc_of<scalar_t>;
  using Math = RowMath<scalar_t>;
  acc_t value;
  uint32_t at;
  acc_t defined;  // 1, or NaN where a row has no limit: several logits of +inf, nothing but -inf, or NaN beside them

  // All threads of the block call it.
  __device__ explicit Top(const RowPass<scalar_t>& row) {
    Placed<acc_t> top = {acc_t(-INFINITY), 0xffffffffu};
    row.each([&](uint32_t c, acc_t x) {
      if (x > top.value || (x == top.value && c < top.at)) top = {x, c};
    });
    top = row.a.group.fold(top, [](Placed<acc_t> a, Placed<acc_t> b) {
      const bool first = a.value > b.value || (a.value == b.value && a.at < b.at);
      return first ? a : b;
    });
    value = top.value;
    at = top.at;
    const bool is_infinite = row.classes > 0 && !(Math::abs(value) < acc_t(INFINITY));
    defined = 1;
    if (__ballot_sync(~0u, is_infinite) == 0) return;  // of a block that shares a row, all warps or none
    uint32_t others = 0;
    row.each([&](uint32_t, acc_t x) { others += !(x < value); });  // NaN counts
    others = row.a.group.sum(others);
    if (is_infinite && others > 1) defined = acc_t(NAN);
  }

  __device__ acc_t exponential(acc_t x) const { return exp_below<Math>(x, value); }
  __device__ acc_t distance(acc_t x, bool no_coefficient) const {
    const acc_t distance = x == value ? acc_t(0) : value - x;
    return no_coefficient ? almost_finite(distance) : distance;
  }
};

template <class scalar_t>
__device__ acc_of<scalar_t> upstream_of_row(const SoftmaxArguments<scalar_t>& a, int64_t row) {
  return a.upstream_per_row ? widen(a.upstream_per_row[row]) : acc_of<scalar_t>(1);
}

// The factor of the whole gradient, in every lane of the calling warp.
template <class scalar_t>
__device__ acc_of<scalar_t> gradient_factor(const SoftmaxArguments<scalar_t>& a) {
  if (!a.gradient) return 0;
  return (a.upstream ? *a.upstream : acc_of<scalar_t>(1)) / divisor(a.normaliser);
}

// Loss and gradient of a row with a class id. Returns the loss in every lane of the group; all threads of the block
// call it.
template <class scalar_t>
__device__ acc_of<scalar_t> id_row(
    const SoftmaxArguments<scalar_t>& a, int64_t row, bool exists, acc_of<scalar_t> factor) {
  using acc_t = acc_of<scalar_t>;
  using Math = RowMath<scalar_t>;
  const int label = exists ? label_at(a.ids, row) : kIgnored;
  const bool read = label >= 0;
  const uint32_t y = read ? uint32_t(label) : 0;
  scalar_t* const gradient = a.gradient + (a.gradient ? row * a.classes : 0);
  const RowPass<scalar_t> pass{a, a.inputs + (exists ? row * a.classes : 0), read ? a.classes : 0};
  const Top<scalar_t> top(pass);
  const acc_t x_y = read ? pass.at(y) : acc_t(0);
  acc_t others = 0, mean_distance = 0;
  const acc_t share = acc_t(1) / acc_t(a.classes);
  pass.each([&](uint32_t c, acc_t x) {
    // a product: the compiler would make a branch of anything else
    others += top.exponential(x) * acc_t(c == y ? 0 : 1);
    if (a.smoothing != 0) mean_distance += top.distance(x, false) * share;
  });
  others = a.group.sum(others);
  if (a.smoothing != 0) mean_distance = a.group.sum(mean_distance);
  // every lane has read x_y, which the gradient may replace; a whole block's sum waits by itself
  __syncwarp();
  if (!read) {
    const acc_t nothing = label == kIgnored ? acc_t(0) : acc_t(NAN);
    if (exists && a.gradient)
      for (uint32_t c = a.group.lane(); c < a.classes; c += a.group.size) gradient[c] = narrow<scalar_t>(nothing);
    return nothing;
  }
  const acc_t own = top.exponential(x_y), alpha = a.alpha ? a.alpha[y] : a.alpha_of_all;
  const acc_t distance = top.distance(x_y, alpha == 0);
  if (alpha == 0) mean_distance = almost_finite(mean_distance);
  SoftmaxRow<acc_t> result;
  with_gamma(a, [&](const auto& modulator) {
    result = a.smoothing == 0 ? softmax_focal_row<Math>(own, others, distance, modulator)
                              : smoothed_softmax_focal_row<Math>(own, others, distance, mean_distance, a.smoothing,
                                    a.kept, acc_t(a.classes), modulator);
  });
  const acc_t coefficient = alpha * (a.weight ? a.weight[row * a.weight_row_stride] : acc_t(1)) * top.defined;
  if (a.gradient) {
    const acc_t scale = coefficient * factor * upstream_of_row(a, row);
    const acc_t of_others = scale * result.others, shift = scale * result.shift, of_label = scale * result.own;
    pass.put(gradient, [&](uint32_t, acc_t x) { return of_others * top.exponential(x) - shift; });
    if (pass.owns(y)) gradient[y] = narrow<scalar_t>(of_label);
  }
  return coefficient * result.value;
}

// row_of(argument, row, exists, factor) computes a row.
template <class scalar_t, class RowOf>
__device__ void all_rows(const SoftmaxArguments<scalar_t>& a, RowOf row_of) {
  using acc_t = acc_of<scalar_t>;
  const acc_t factor = gradient_factor(a);
  const uint32_t rows_at_once = kThreads / a.group.size, place = threadIdx.x / a.group.size;
  acc_t sum = 0;
  for (int64_t first = int64_t(blockIdx.x) * rows_at_once; first < a.rows; first += int64_t(gridDim.x) * rows_at_once) {
    const int64_t row = first + place;
    const bool exists = row < a.rows;
    const acc_t value = row_of(row, exists,
        a.batch.factors && exists ? a.batch.factors[quotient(row, a.batch.rows, a.batch.reciprocal)] : factor);
    if (!exists || a.group.lane() != 0) continue;
    if (a.batch.factors) a.partials[row] = value;
    else sum += value;
    if (a.loss_map) a.loss_map[row] = narrow<scalar_t>(value);
  }
  if (!a.partials || a.batch.factors) return;
  const acc_t total = block_sum<kThreads>(sum);
  if (threadIdx.x == 0) a.partials[blockIdx.x] = total;
}

template <class scalar_t>
__global__ __launch_bounds__(kThreads, sizeof(scalar_t) == 8 ? 2 : 4) void softmax_ids_kernel(
    const __grid_constant__ SoftmaxArguments<scalar_t> a) {
  all_rows(a, [&](int64_t row, bool exists, acc_of<scalar_t> factor) { return id_row(a, row, exists, factor); });
}

}  // namespace focal_ext::cuda

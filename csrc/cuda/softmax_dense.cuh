// Owns: the softmax kernel for dense targets.
// Must not know: how many blocks run or who launched them.
#pragma once
#include "softmax.cuh"

namespace focal_ext::cuda {

// The sum of terms without the largest of them, which is kept apart: no term is ever subtracted from a sum that it
// dominates.
template <class acc_t>
struct SumBesideLargest {
  Placed<acc_t> largest;
  acc_t rest;

  __device__ void add(uint32_t c, acc_t term) { *this = both(*this, {{term, c}, acc_t(0)}); }
  static __device__ SumBesideLargest both(const SumBesideLargest& a, const SumBesideLargest& b) {
    const bool first =
        a.largest.value > b.largest.value || (a.largest.value == b.largest.value && a.largest.at < b.largest.at);
    return {first ? a.largest : b.largest, (a.rest + b.rest) + (first ? b.largest.value : a.largest.value)};
  }
};
template <class acc_t>
__device__ SumBesideLargest<acc_t> exchange(SumBesideLargest<acc_t> a, uint32_t distance) {
  return {exchange(a.largest, distance), exchange(a.rest, distance)};
}

template <class scalar_t>
__device__ acc_of<scalar_t> target_at(const SoftmaxArguments<scalar_t>& a, int64_t element) {
  using acc_t = acc_of<scalar_t>;
  const void* const targets = a.ids.ids;
  if (a.ids.type == Target::dense_u8) return acc_t(widen(static_cast<const uint8_t*>(targets)[element]));
  if (a.ids.type == Target::dense_scalar) return widen(static_cast<const scalar_t*>(targets)[element]);
  return static_cast<const acc_t*>(targets)[element];
}

template <class scalar_t>
struct DenseRow {
  using acc_t = acc_of<scalar_t>;
  using Math = RowMath<scalar_t>;
  const SoftmaxArguments<scalar_t>& a;
  const Top<scalar_t>& top;
  int64_t begin;
  acc_t rest, sum, log_sum;  // of the exponentials: without the largest, all, and its logarithm

  // alpha_c t_c
  __device__ acc_t coefficient(uint32_t c) const {
    return (a.alpha ? a.alpha[c] : a.alpha_of_all) * target_at(a, begin + c);
  }

  // Value and slope times the coefficient.
  template <class Modulator>
  __device__ SoftmaxTerm<acc_t> term(uint32_t c, acc_t x, const Modulator& modulator) const {
    const acc_t factor = coefficient(c), e = top.exponential(x);
    SoftmaxTerm<acc_t> t = softmax_focal_term<Math>(
        e, c == top.at ? rest : sum - e, sum, top.distance(x, factor == 0), log_sum, modulator);
    t.value *= factor;
    t.slope *= factor;
    return t;
  }
};

// As id_row; df/dx_c = p_c (sum of the other slopes) - slope_c u_c.
template <class scalar_t>
__device__ acc_of<scalar_t> dense_row(
    const SoftmaxArguments<scalar_t>& a, int64_t row, bool exists, acc_of<scalar_t> factor) {
  using acc_t = acc_of<scalar_t>;
  using Math = RowMath<scalar_t>;
  const int64_t begin = exists ? row * a.classes : 0;
  const RowPass<scalar_t> pass{a, a.inputs + begin, exists ? a.classes : 0};
  const Top<scalar_t> top(pass);
  acc_t rest = 0;
  uint32_t ignored = 0, bad = 0;  // targets
  pass.template each<false>([&](uint32_t c, acc_t) {
    const acc_t t = target_at(a, begin + c);
    ignored += t == a.ignored;
    bad += a.ids.type == Target::dense_u8 && t > 1;
  });
  ignored = a.group.sum(ignored), bad = a.group.sum(bad);
  pass.each([&](uint32_t c, acc_t x) { rest += top.exponential(x) * acc_t(c == top.at ? 0 : 1); });
  rest = a.group.sum(rest);
  __syncwarp();  // the passes below share the classes out in another way, and the gradient may replace the logits
  const acc_t sum = acc_t(1) + rest;
  const DenseRow<scalar_t> dense{a, top, begin, rest, sum, log_of_sum<Math>(sum, rest)};
  acc_t value = 0;
  SumBesideLargest<acc_t> slopes = {{acc_t(0), 0xffffffffu}, acc_t(0)};
  with_gamma(a, [&](const auto& modulator) {
    pass.template each<false>([&](uint32_t c, acc_t x) {
      const SoftmaxTerm<acc_t> t = dense.term(c, x, modulator);
      value += t.value;
      slopes.add(c, t.slope);
    });
  });
  value = a.group.sum(value);
  slopes = a.group.fold(slopes, [](const SumBesideLargest<acc_t>& one, const SumBesideLargest<acc_t>& other) {
    return SumBesideLargest<acc_t>::both(one, other);
  });
  if (!exists) return 0;
  if (ignored + bad != 0) {
    const acc_t everywhere = ignored ? acc_t(0) : acc_t(NAN);
    if (a.gradient) pass.template put<false>(a.gradient + begin, [&](uint32_t, acc_t) { return everywhere; });
    return everywhere;
  }
  const acc_t coefficient = (a.weight ? a.weight[row * a.weight_row_stride] : acc_t(1)) * top.defined;
  if (a.gradient) {
    const acc_t scale = coefficient * factor * upstream_of_row(a, row), all = slopes.rest + slopes.largest.value;
    with_gamma(a, [&](const auto& modulator) {
      pass.template put<false>(a.gradient + begin, [&](uint32_t c, acc_t x) {
        const SoftmaxTerm<acc_t> t = dense.term(c, x, modulator);
        return scale * (t.p * (c == slopes.largest.at ? slopes.rest : all - t.slope) - t.slope * t.u);
      });
    });
  }
  return coefficient * value;
}

template <class scalar_t>
__global__ __launch_bounds__(kThreads, sizeof(scalar_t) == 8 ? 1 : 2) void softmax_dense_kernel(
    const __grid_constant__ SoftmaxArguments<scalar_t> a) {
  all_rows(a, [&](int64_t row, bool exists, acc_of<scalar_t> factor) { return dense_row(a, row, exists, factor); });
}

}  // namespace focal_ext::cuda

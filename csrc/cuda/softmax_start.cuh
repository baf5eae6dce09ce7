// Owns: the choice of the softmax kernel for a problem, or a level in planes, and of the threads that share a row.
// Must not know: workspace, counts.
#pragma once
#include "launch.cuh"
#include "launch.h"
#include "plan.h"
#include "softmax_dense.cuh"
#include "start.cuh"

namespace focal_ext::cuda {

// 16 logits a lane and more, so that what is computed once a row costs little; the whole block where a warp would be
// busy for long.
inline uint32_t choose_group(int64_t classes) {
  if (classes >= 4096) return kThreads;
  uint32_t size = 1;
  while (size < 32 && size * 32 <= classes) size *= 2;
  return size;
}

inline int64_t row_blocks(const Problem& p) {
  const int64_t rows_at_once = kThreads / choose_group(p.classes);
  return (p.rows + rows_at_once - 1) / rows_at_once;
}

template <class scalar_t>
SoftmaxArguments<scalar_t> softmax_arguments_of(const Problem& p, const Normaliser<acc_of<scalar_t>>& normaliser,
    acc_of<scalar_t>* partials, const RowBatch<acc_of<scalar_t>>& batch) {
  using acc_t = acc_of<scalar_t>;
  const bool aligned = sizeof(scalar_t) < 8 && is_aligned(p.inputs) && is_aligned(p.gradient) &&
                       p.classes * int64_t(sizeof(scalar_t)) % 16 == 0;
  const Exponent gamma(p.loss_parameters.numbers[0]);
  return {
      static_cast<const scalar_t*>(p.inputs),
      static_cast<scalar_t*>(p.gradient),
      static_cast<scalar_t*>(p.loss_map),
      p.loss || batch.factors ? partials : nullptr,
      p.rows,
      batch,
      uint32_t(p.classes),
      {choose_group(p.classes)},
      aligned,
      ids_of(p),
      acc_t(ignored_target(p)),
      acc_t(p.alpha_positive),
      static_cast<const acc_t*>(p.alpha),
      static_cast<const acc_t*>(p.weight),
      p.weight_row_stride,
      acc_t(p.loss_parameters.numbers[1]),
      acc_t(1 - p.loss_parameters.numbers[1]),
      p.loss_parameters.numbers[0],
      WholeModulator<0>(gamma),
      WholeModulator<1>(gamma),
      WholeModulator<2>(gamma),
      AnyModulator(gamma),
      normaliser,
      p.grad_output_per_element || batch.factors ? nullptr : static_cast<const acc_t*>(p.grad_output),
      p.grad_output_per_element ? static_cast<const scalar_t*>(p.grad_output) : nullptr,
  };
}

template <class scalar_t>
const char* start_softmax(const Problem& p, const Normaliser<acc_of<scalar_t>>& normaliser, acc_of<scalar_t>* partials,
    const RowBatch<acc_of<scalar_t>>& batch, uint32_t blocks, void* stream) {
  const SoftmaxArguments<scalar_t> a = softmax_arguments_of<scalar_t>(p, normaliser, partials, batch);
  return launch(
      is_dense(p.target) ? softmax_dense_kernel<scalar_t> : softmax_ids_kernel<scalar_t>, blocks, kThreads, stream, a);
}

// A level in planes, whose first anchor of an image is its `first_row`, by `blocks` blocks (softmax_planes.cu). Of few
// tiles with many classes the warps of a block share each.
const char* start_softmax_planes(const Pyramid& p, const Level& level, int64_t first_row,
    const Normaliser<float>& normaliser, float* partials, uint32_t max_blocks, uint32_t& blocks, void* stream);

}  // namespace focal_ext::cuda

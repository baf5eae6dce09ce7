// Owns: what the summed loss and the gradient are divided by, and the last step of the reduction.
// Must not know: how the partial sums came about.
#pragma once
#include "labels.cuh"

namespace focal_ext::cuda {

constexpr int kFinishThreads = 256;

template <class acc_t>
struct Normaliser {
  Divisor kind;
  acc_t value;
  const acc_t* tensor;
  const uint32_t* counts;  // kScanBlocks of them
  int64_t classes;  // that a counted row stands for; 1 where logits are counted
};

// The divisor, in every lane of the calling warp.
template <class acc_t>
__device__ acc_t divisor(const Normaliser<acc_t>& a) {
  if (a.kind == Divisor::value) return a.value;
  if (a.kind == Divisor::tensor) return *a.tensor;
  const uint64_t elements = total_count(a.counts) * (a.kind == Divisor::kept ? a.classes : 1);
  return elements > 0 ? acc_t(elements) : acc_t(1);
}

// loss = sum(partials) / divisor, added in double and in a fixed order. Nothing to add is 0, whatever the divisor.
template <class acc_t>
__global__ __launch_bounds__(kFinishThreads) void finish_kernel(
    const acc_t* partials, uint32_t count, const __grid_constant__ Normaliser<acc_t> normaliser, acc_t* loss) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += kFinishThreads) sum += double(partials[i]);
  const double total = block_sum<kFinishThreads>(sum);
  if (threadIdx.x >= 32) return;
  const acc_t result = count == 0 ? acc_t(0) : acc_t(total / double(divisor(normaliser)));
  if (threadIdx.x == 0) *loss = result;
}

}  // namespace focal_ext::cuda

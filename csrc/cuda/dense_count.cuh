// Owns: the count of dense targets that are not ignored.
// Must not know: logits, losses.
#pragma once
#include "labels.cuh"
#include "vector.cuh"

namespace focal_ext::cuda {

// Dense targets.
struct Dense {
  const void* targets;
  Target type;
  Scalar scalar;   // of logits
  double ignored;  // NaN: none

  template <class acc_t, class target_t>
  __device__ bool keeps(const target_t* t, int64_t i) const {
    return acc_t(widen(t[i])) != acc_t(ignored);
  }
  __device__ bool keeps(int64_t i) const {
    if (type == Target::dense_u8) return keeps<float>(static_cast<const uint8_t*>(targets), i);
    if (scalar == Scalar::f64) return keeps<double>(static_cast<const double*>(targets), i);
    if (type == Target::dense_scalar && scalar == Scalar::bf16)
      return keeps<float>(static_cast<const __nv_bfloat16*>(targets), i);
    if (type == Target::dense_scalar && scalar == Scalar::f16)
      return keeps<float>(static_cast<const __half*>(targets), i);
    return keeps<float>(static_cast<const float*>(targets), i);
  }
};

// counts[block] = of a part of a group of `runs` of `width` targets those of which none is ignored: logits for a width
// of 1, else rows, which a warp reads.
__global__ __launch_bounds__(kScanThreads) void count_dense_kernel(
    const __grid_constant__ Dense dense, int64_t runs, int64_t width, uint32_t parts, uint32_t* counts) {
  const uint32_t group = blockIdx.x / parts, part = blockIdx.x - group * parts;
  const uint32_t lanes = width == 1 ? 1 : 32, lane = threadIdx.x % lanes;
  const int64_t at_once = int64_t(parts) * (kScanThreads / lanes);
  uint32_t count = 0;
  for (int64_t first = int64_t(part) * (kScanThreads / lanes); first < runs; first += at_once) {
    const int64_t run = first + threadIdx.x / lanes;
    bool kept = run < runs;
    for (int64_t c = lane; run < runs && c < width; c += lanes) kept &= dense.keeps((group * runs + run) * width + c);
    if (lanes == 32) kept = __ballot_sync(~0u, !kept) == 0 && lane == 0;
    count += kept;
  }
  const uint32_t total = block_sum<kScanThreads>(count);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

}  // namespace focal_ext::cuda

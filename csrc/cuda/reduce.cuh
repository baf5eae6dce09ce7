// Owns: sums over warps and blocks, always in the same order, so that equal inputs give equal bits.
// Must not know: what is summed. No atomics, no counters: nothing to reset, so a CUDA graph can replay it.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

#include "device.cuh"

namespace focal_ext::cuda {

// In every lane. Shuffles only: sm_75 has no redux, and it would not add floats.
template <class T>
__device__ T warp_sum(T value) {
  for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

// In the first warp. Called at most once in a kernel: nothing guards the slots against a second call.
template <int threads, class T>
__device__ T block_sum(T value) {
  static_assert(threads % 32 == 0 && threads <= 1024);
  FOCAL_EXT_SHARED(T, slots, [threads / 32]);
  value = warp_sum(value);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
  __syncthreads();  // the first warp reads what all warps wrote
  if (threadIdx.x >= 32) return T(0);
  return warp_sum(threadIdx.x < threads / 32 ? slots[threadIdx.x] : T(0));
}

}  // namespace focal_ext::cuda

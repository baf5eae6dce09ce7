// Owns: the threads that share one row: a power of two of neighbouring lanes, or the whole block; what they fold
// together, and in which order.
// Must not know: what a row holds.
#pragma once
#include "arguments.cuh"

namespace focal_ext::cuda {

// A value and where it stands.
template <class T>
struct Placed {
  T value;
  uint32_t at;
};

template <class T>
__device__ T exchange(T value, uint32_t distance) {
  return __shfl_xor_sync(~0u, value, int(distance));
}
template <class T>
__device__ Placed<T> exchange(Placed<T> a, uint32_t distance) {
  return {exchange(a.value, distance), exchange(a.at, distance)};
}

struct Group {
  uint32_t size;  // 1, 2, 4 ... 32, or kThreads

  __device__ uint32_t lane() const { return threadIdx.x & (size - 1); }

  // f over the values of all lanes, in every lane. All threads of the block call it, groups without a row too. f does
  // not mind the order of its two arguments, so all lanes agree to the bit.
  template <class T, class F>
  __device__ T fold(T value, F f) const {
    for (uint32_t distance = (size < 32 ? size : 32) / 2; distance > 0; distance /= 2)
      value = f(value, exchange(value, distance));
    if (size <= 32) return value;
    FOCAL_EXT_SHARED(T, slots, [kWarps]);
    __syncthreads();  // all have read what the last call left there
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = value;
    __syncthreads();
    value = slots[0];
    for (int warp = 1; warp < kWarps; ++warp) value = f(value, slots[warp]);
    return value;
  }

  template <class T>
  __device__ T sum(T value) const {
    return fold(value, [](T a, T b) { return a + b; });
  }
};

}  // namespace focal_ext::cuda

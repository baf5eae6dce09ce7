// Owns: a plain copy in vectors of 16 bytes, four in flight a thread: the control of bench/model.py.
// Must not know: losses. It is no part of the library.
#include <stdint.h>

__global__ __launch_bounds__(256) void copy_kernel(
    const uint4* __restrict__ from, uint4* __restrict__ to, int64_t vectors) {
  constexpr int kInFlight = 4;
  const int64_t threads = int64_t(gridDim.x) * blockDim.x, first = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
#pragma unroll 1
  for (int64_t i = first; i + (kInFlight - 1) * threads < vectors; i += kInFlight * threads) {
    uint4 x[kInFlight];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) x[u] = from[i + u * threads];
#pragma unroll
    for (int u = 0; u < kInFlight; ++u) to[i + u * threads] = x[u];
  }
}

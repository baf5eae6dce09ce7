// Owns: the backward pass of a gradient that is already finished: a product that is skipped when its factor is 1.
// Must not know: where the gradient came from.
#pragma once
#include "vector.cuh"

namespace focal_ext::cuda {

constexpr int kScaleThreads = 256;

// `head` elements come before the first 16-byte boundary. The host never learns the factor, so nothing waits for it.
template <class scalar_t>
__global__ __launch_bounds__(kScaleThreads) void scale_kernel(scalar_t* gradient, int64_t head, int64_t numel, const acc_of<scalar_t>* factor_pointer) {
  const acc_of<scalar_t> factor = *factor_pointer;
  if (factor == 1) return;
  const int64_t thread = int64_t(blockIdx.x) * kScaleThreads + threadIdx.x, threads = int64_t(gridDim.x) * kScaleThreads;
  const auto scale_one = [&](int64_t i) { gradient[i] = narrow<scalar_t>(widen(gradient[i]) * factor); };
  for (int64_t i = thread; i < head; i += threads) scale_one(i);
  int64_t done = head;
  if constexpr (sizeof(scalar_t) < 8) {
    constexpr int size = kVector<scalar_t>;
    uint4* const vectors = reinterpret_cast<uint4*>(gradient + head);
    const int64_t count = (numel - head) / size;
    for (int64_t v = thread; v < count; v += threads) {
      float x[size];
      unpack<scalar_t>(vectors[v], x);
#pragma unroll
      for (int j = 0; j < size; ++j) x[j] *= factor;
      vectors[v] = pack<scalar_t>(x);
    }
    done += count * size;
  }
  for (int64_t i = done + thread; i < numel; i += threads) scale_one(i);
}

}  // namespace focal_ext::cuda

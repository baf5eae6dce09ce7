// Owns: the backward pass of a gradient that is already finished: a product that is skipped when its factor is 1.
// Must not know: where the gradient came from.
#pragma once
#include "vector.cuh"

namespace focal_ext::cuda {

constexpr int kScaleThreads = 256;

// `head` elements come before the first 16-byte boundary.
template <class scalar_t>
__device__ void scale_by(
    scalar_t* gradient, int64_t head, int64_t numel, acc_of<scalar_t> factor, int64_t thread, int64_t threads) {
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

// `blocks` for a group of `numel` elements; of more groups than fit the grid each takes several. The host never learns
// the factors, so nothing waits for them.
template <class scalar_t>
__global__ __launch_bounds__(kScaleThreads) void scale_kernel(
    scalar_t* gradient, int64_t numel, int64_t groups, uint32_t blocks, const acc_of<scalar_t>* factors) {
  constexpr int64_t size = kVector<scalar_t>;
  const uint32_t first = blockIdx.x / blocks, block = blockIdx.x - first * blocks;
  for (int64_t group = first; group < groups; group += gridDim.x / blocks) {
    const acc_of<scalar_t> factor = factors[group];
    if (factor == 1) continue;
    scalar_t* const own = gradient + group * numel;
    const int64_t beyond = int64_t(reinterpret_cast<uintptr_t>(own) % 16 / sizeof(scalar_t)),
                  before = beyond ? size - beyond : 0;
    scale_by(own, before < numel ? before : numel, numel, factor, int64_t(block) * kScaleThreads + threadIdx.x,
        int64_t(blocks) * kScaleThreads);
  }
}

}  // namespace focal_ext::cuda

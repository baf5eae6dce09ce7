// Owns: groups of neighbouring rows that each have a loss and a divisor of their own: what their tiles need, and the
// first and last steps of a call.
// Must not know: logits, losses, how a tile's sum came about.
#pragma once
#include "normaliser.cuh"

namespace focal_ext::cuda {

// A divisor of 32-bit numbers.
struct Count {
  uint32_t value, reciprocal;  // floor((2^32 - 1) / value)
};
inline Count count_of(int64_t n) { return {uint32_t(n), 0xffffffffu / uint32_t(n)}; }

// i / by, without a division: the reciprocal is rounded down, so the product is at most one too small.
inline __device__ uint32_t quotient(uint32_t i, Count by) {
  const uint32_t q = __umulhi(i, by.reciprocal);
  return i - q * by.value >= by.value ? q + 1 : q;
}

// Tiles end with their group. Each leaves a sum: the blocks of a grid share groups in no way that a sum by blocks could
// follow.
template <class acc_t>
struct Batch {
  const acc_t* factors;  // of each group's gradient; null: there is one group, and sums are those of blocks
  Count tiles;           // of a group
  int64_t rows;          // likewise
};

// The same for rows that have a loss each.
template <class acc_t>
struct RowBatch {
  const acc_t* factors;
  uint32_t rows;        // of a group
  uint64_t reciprocal;  // floor((2^64 - 1) / rows)
};

constexpr int kBatchThreads = 256;

// What the divisor of each group and the factor of its gradient are made of.
template <class acc_t>
struct Dividing {
  Normaliser<acc_t> normaliser;  // counts: `parts` of each group
  uint32_t parts;
  bool divisor_per_group, upstream_per_group, has_gradient;
  const acc_t* upstream;  // null: 1
};

template <class acc_t>
__global__ __launch_bounds__(kBatchThreads) void divide_kernel(
    const __grid_constant__ Dividing<acc_t> a, int64_t groups, acc_t* divisors, acc_t* factors) {
  const Normaliser<acc_t>& n = a.normaliser;
  for (int64_t g = int64_t(blockIdx.x) * kBatchThreads + threadIdx.x; g < groups;
      g += int64_t(gridDim.x) * kBatchThreads) {
    acc_t divisor = n.value;
    if (n.kind == Divisor::tensor) divisor = n.tensor[a.divisor_per_group ? g : 0];
    if (n.kind == Divisor::kept || n.kind == Divisor::positives) {
      uint64_t count = 0;
      for (uint32_t i = 0; i < a.parts; ++i) count += n.counts[g * a.parts + i];
      if (n.kind == Divisor::kept) count *= uint64_t(n.classes);
      divisor = acc_t(count > 0 ? count : 1);
    }
    divisors[g] = divisor;
    factors[g] =
        !a.has_gradient ? acc_t(0) : (a.upstream ? a.upstream[a.upstream_per_group ? g : 0] : acc_t(1)) / divisor;
  }
}

// loss[group] = sum(its tiles' sums) / its divisor, as finish_kernel; a warp has few tiles, a block many.
constexpr uint32_t kFewTiles = 64;

template <class acc_t>
__global__ __launch_bounds__(kFinishThreads) void finish_groups_kernel(
    const acc_t* sums, uint32_t tiles, const acc_t* divisors, int64_t groups, acc_t* loss) {
  const uint32_t threads = tiles <= kFewTiles ? 32 : kFinishThreads, thread = threadIdx.x % threads;
  const int64_t group = int64_t(blockIdx.x) * (kFinishThreads / threads) + threadIdx.x / threads;
  double sum = 0;
  for (uint32_t i = thread; group < groups && i < tiles; i += threads) sum += double(sums[group * tiles + i]);
  const double total = threads == 32 ? warp_sum(sum) : block_sum<kFinishThreads>(sum);
  if (group < groups && thread == 0) loss[group] = tiles == 0 ? acc_t(0) : acc_t(total / double(divisors[group]));
}

}  // namespace focal_ext::cuda

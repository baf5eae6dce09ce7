// Owns: what a class id means, and the scan that counts ids.
// Must not know: logits, losses.
//
// Ids are read as they come, here and in the main kernel. A narrowed copy would save 4 bytes of 16 per anchor, which is
// 1 % of the traffic of 80 classes, only when the ids do not fit the L2 cache, and would cost a buffer.
#pragma once
#include "../problem.h"
#include "reduce.cuh"

namespace focal_ext::cuda {

// A row's class id after interpretation: the class itself for a positive, else one of these.
constexpr int kBackground = -1, kIgnored = -2, kBad = -3;

struct Ids {
  const void* ids;
  Target type;
  bool has_ignore_index;
  int64_t ignore_index;
  int64_t classes, other_background;
};

// Widened before any comparison: a uint8 255 is not -1, and a uint64 beyond int64 is bad, never background.
template <class id_t>
__device__ int interpret(id_t raw, const Ids& a) {
  const int64_t id = int64_t(raw);
  const bool beyond_int64 = id_t(-1) > id_t(0) && sizeof(id_t) == 8 && id < 0;
  if (beyond_int64) return kBad;
  if (a.has_ignore_index && id == a.ignore_index) return kIgnored;
  if (id >= 0 && id < a.classes) return int(id);
  return id == -1 || id == a.other_background ? kBackground : kBad;
}

template <class id_t>
__device__ int interpret_at(const Ids& a, int64_t row) {
  return interpret(static_cast<const id_t*>(a.ids)[row], a);
}

inline __device__ int label_at(const Ids& a, int64_t row) {
  switch (a.type) {  // the same way for the whole grid
    case Target::u8: return interpret_at<uint8_t>(a, row);
    case Target::i8: return interpret_at<int8_t>(a, row);
    case Target::u16: return interpret_at<uint16_t>(a, row);
    case Target::i16: return interpret_at<int16_t>(a, row);
    case Target::u32: return interpret_at<uint32_t>(a, row);
    case Target::i32: return interpret_at<int32_t>(a, row);
    case Target::u64: return interpret_at<uint64_t>(a, row);
    default: return interpret_at<int64_t>(a, row);
  }
}

// The ids of background by their bits, where ids have 64 of them: what nearly all rows have is told without
// interpreting it.
struct CommonIds {
  bool are_given;
  int64_t one, other;
};
inline CommonIds common_ids(const Ids& a) {
  const auto is_background = [&](int64_t id) {
    return (a.type == Target::i64 || (a.type == Target::u64 && id >= 0)) &&
           !(a.has_ignore_index && id == a.ignore_index);
  };
  const int64_t minus_one = -1, other = a.other_background;
  if (!is_background(minus_one)) return {is_background(other), other, other};
  return {true, minus_one, is_background(other) ? other : minus_one};
}

// As many blocks as a warp has lanes times 4, so that each warp of the main kernel adds the counts with one 16-byte
// load a lane.
constexpr int kScanBlocks = 128, kScanThreads = 512;

// counts[block] = positive rows, or rows that are not ignored, of a part of a group of `rows`. Fewer rows than 2^32 in
// each block.
template <bool positives>
__global__ __launch_bounds__(kScanThreads) void count_rows_kernel(
    const __grid_constant__ Ids ids, int64_t rows, uint32_t parts, uint32_t* counts) {
  const uint32_t group = blockIdx.x / parts, part = blockIdx.x - group * parts;
  uint32_t count = 0;
  for (int64_t row = int64_t(part) * kScanThreads + threadIdx.x; row < rows; row += int64_t(parts) * kScanThreads) {
    const int label = label_at(ids, group * rows + row);
    count += positives ? label >= 0 : label != kIgnored;
  }
  const uint32_t total = block_sum<kScanThreads>(count);
  if (threadIdx.x == 0) counts[blockIdx.x] = total;
}

// The sum of all counts, in every lane of the calling warp.
inline __device__ uint64_t total_count(const uint32_t* counts) {
  const uint4 four = reinterpret_cast<const uint4*>(counts)[threadIdx.x % 32];
  return warp_sum(uint64_t(four.x) + four.y + four.z + four.w);
}

}  // namespace focal_ext::cuda

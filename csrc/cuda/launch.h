// Owns: the CUDA kernels' host interface, in plain pointers.
// Must not know: torch. The caller owns every byte: outputs and workspace come from its allocator, the stream is its
// own.
#pragma once
#include <stddef.h>

#include "../problem.h"
#include "plan.h"

namespace focal_ext::cuda {

// Of the main kernel: about four rounds on the largest chips, so that slow tiles even out, and few enough partial sums
// for one block to add. A constant, not the chip's size: equal inputs give equal bits on every GPU.
constexpr uint32_t kMaxBlocks = 4096;

// Bytes of device memory `run` needs beside the results; alignment 256.
size_t workspace_bytes(const Problem& problem);

// Launches everything on `stream` (a cudaStream_t) and returns without waiting: nullptr, or the error's text.
// grad_output, divisor_tensor and every other pointer of the problem are device pointers.
const char* run(const Problem& problem, void* workspace, void* stream, uint32_t max_blocks = kMaxBlocks,
    uint32_t least_tiles = kLeastTiles);

// Likewise for a pyramid, whose levels a few launches share only where they are more than 16.
size_t workspace_bytes(const Pyramid& pyramid);
const char* run(const Pyramid& pyramid, void* workspace, void* stream, uint32_t max_blocks = kMaxBlocks);

// Of `scale`: enough to reach the memory's bandwidth, and few to start for nothing, which is the usual case.
constexpr uint32_t kMaxScaleBlocks = 1024;

// Equally many neighbours for each of the factors, acc_t[groups], are multiplied by it unless it is 1, decided on the
// device.
const char* scale(void* gradient, Scalar scalar, int64_t numel, const void* factors, int64_t groups, void* stream,
    uint32_t max_blocks = kMaxBlocks);

}  // namespace focal_ext::cuda

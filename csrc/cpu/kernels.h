// Owns: the boundary between the chunk kernels, compiled once per instruction set, and the code that calls them.
// Must not know: which instruction set is in use.
#pragma once
#include <stdint.h>

#include "../problem.h"

namespace focal_ext::cpu {

// A chunk is the unit of work and of summation: sums inside it are in a fixed order, so results do not depend on who computes it.
constexpr int64_t kChunk = 16384;

// Computes chunk `index` of the flat logits; gradients are multiplied by `scale`. Returns the chunk's sum of losses.
using ChunkKernel = double (*)(const Problem& problem, int64_t index, double scale);

#define FOCAL_EXT_DECLARE_LEVEL(level) \
  namespace level {                    \
  double run_chunk(const Problem& problem, int64_t index, double scale); \
  }
FOCAL_EXT_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
FOCAL_EXT_DECLARE_LEVEL(x86_64_v3)
FOCAL_EXT_DECLARE_LEVEL(x86_64_v4)
#endif
#undef FOCAL_EXT_DECLARE_LEVEL

}  // namespace focal_ext::cpu

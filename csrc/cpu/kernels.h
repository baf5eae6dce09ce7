// Owns: the boundary between the kernels, compiled once per instruction set, and the code that calls them.
// Must not know: which instruction set is in use.
#pragma once
#include <stdint.h>

#include "../problem.h"

namespace focal_ext::cpu {

// A chunk is the unit of work and of summation: sums inside it are in a fixed order, so results do not depend on who
// computes it.
constexpr int64_t kChunk = 16384;
constexpr int64_t kMaxStrip = 512;

// Logits of a strip of a softmax loss with dense targets whose three numbers are kept: they fit the second-level cache.
constexpr int64_t kDenseStripLogits = 16384;

// With class ids a strip is computed in blocks of positions. The logits of three blocks fit the second-level cache. A
// block of kBlockMost floats keeps its exponentials; a larger one computes them twice.
constexpr int64_t kBlockLogits = 10240, kBlockMost = 65536, kStripBlocks = 8;
static inline int64_t softmax_block(int64_t classes) {
  constexpr int64_t kEnough = 128;  // positions
  const int64_t few = kBlockLogits / classes, many = kBlockMost / classes < kEnough ? kBlockMost / classes : kEnough,
                width = (few > many ? few : many) / 32 * 32;
  return width < 32 ? 32 : width < kMaxStrip ? width : kMaxStrip;
}

// Neighbouring positions of one anchor's planes: at most kMaxStrip, or kStripBlocks blocks of a softmax loss.
struct Strip {
  int64_t anchors, positions;  // of the level
  int64_t anchor, first, count;
};

// The results of one half-precision logit as a negative: its loss, and the 16 bits to be stored for it, of the gradient
// or of the loss map.
struct Entry {
  float value;
  uint32_t stored;
};
constexpr int64_t kEntries = 65536;  // of a table, by the logit's bits

// Whether all negatives have one factor.
static inline bool is_uniform(const Problem& p) {
  return !p.alpha && !p.weight && !p.grad_output_per_element && p.alpha_negative != 0;
}

// Rows of a chunk of a softmax loss, which sums over whole rows.
static inline int64_t rows_of_chunk(int64_t classes) {
  return classes < 1 ? kChunk : classes < kChunk ? kChunk / classes : 1;
}

// What the chunks of a call have in common: the factor of gradients; the table of all logits' results, or null; and a
// flag that is set where a dense target is ignored. A scale that was made of the number of all targets is then wrong.
struct Common {
  double scale;
  const Entry* table;
  bool* has_ignored = nullptr;

  void tell_ignored() const { __atomic_store_n(has_ignored, true, __ATOMIC_RELAXED); }
};

// Computes chunk `index` of the flat logits, or of the rows, or a strip of planes. Returns the sum of losses.
using ChunkKernel = double (*)(const Problem& problem, int64_t index, const Common& common);
using StripKernel = double (*)(const Problem& problem, const Strip& strip, const Common& common);
// Computes the entries of chunk `index` of the 65,536 logits.
using TableKernel = void (*)(const Problem& problem, int64_t index, double scale, Entry* table);

#define FOCAL_EXT_DECLARE_LEVEL(level)                                                    \
  namespace level {                                                                       \
  double run_chunk(const Problem& problem, int64_t index, const Common& common);          \
  double run_rows(const Problem& problem, int64_t index, const Common& common);           \
  double run_strip(const Problem& problem, const Strip& strip, const Common& common);     \
  double run_row_strip(const Problem& problem, const Strip& strip, const Common& common); \
  void run_table(const Problem& problem, int64_t index, double scale, Entry* table);      \
  }
FOCAL_EXT_DECLARE_LEVEL(baseline)
#if defined(__x86_64__)
FOCAL_EXT_DECLARE_LEVEL(x86_64_v3)
FOCAL_EXT_DECLARE_LEVEL(x86_64_v4)
#endif
#undef FOCAL_EXT_DECLARE_LEVEL

}  // namespace focal_ext::cpu

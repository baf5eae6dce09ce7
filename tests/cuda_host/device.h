// Owns: the interface of the device made of a CPU: grids, the meeting points of threads, shared arrays, planted
// defects.
// Must not know: any kernel, CUDA's names for these things (cuda_host.h).
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <vector>

namespace cuda_host {

struct Index {
  uint32_t x;
};
// Of the device thread that runs.
extern Index thread_index, block_index, grid_size;

// Runs body(context) once per thread of every block. Throws if threads wait for each other forever, or meet at
// different places.
extern uint64_t launches;  // so far
void run_grid(uint32_t blocks, uint32_t threads, void (*body)(const void*), const void* context);

// Each returns when all threads of the block, or all lanes of the warp, have called it. Only the first two order
// memory: a kernel that relies on the order a shuffle or a ballot happens to have on one chip is reported by
// ThreadSanitizer.
void sync_block();
void sync_warp();
uint64_t shuffle(uint32_t mask, uint64_t value, uint32_t from_lane);
uint32_t ballot(uint32_t mask, bool predicate);

// The running block's array of one declaration, poisoned when the block first reaches it: NaN as a float, huge as
// anything else.
void* shared_array(const void* declaration, size_t bytes);
void poison(void* memory, size_t bytes);

// The order of blocks and of threads between meeting points.
void set_seed(uint64_t seed);
// Runs only these blocks of each grid, all if empty: tests of far offsets cannot afford the blocks between.
void set_only_blocks(std::vector<uint32_t> blocks);

// Which of the mistakes that defects.py writes into the kernels' text is made, by its place there; -1: none.
extern int planted;

}  // namespace cuda_host

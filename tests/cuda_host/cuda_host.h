// Owns: a CUDA device made of a CPU, as the kernels' own source sees it: included before any of it, compiled by g++.
// Must not know: any kernel, and how threads are scheduled (device.cpp).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#include "device.h"

#undef __global__
#undef __device__
#undef __grid_constant__
#undef __launch_bounds__
#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)

// One poisoned array per block. A static's address is the declaration's identity, also inside a template.
#define FOCAL_EXT_SHARED(type, name, extent)                             \
  static char name##_declaration;                                        \
  auto& name = *static_cast<std::type_identity_t<type extent>*>(         \
      cuda_host::shared_array(&name##_declaration, sizeof(type extent)))

#define threadIdx (cuda_host::thread_index)
#define blockIdx (cuda_host::block_index)
#define gridDim (cuda_host::grid_size)

namespace cuda_host {

template <class Kernel>
void launch(uint32_t blocks, uint32_t threads, const Kernel& kernel) {
  run_grid(blocks, threads, [](const void* body) { (*static_cast<const Kernel*>(body))(); }, &kernel);
}

}  // namespace cuda_host

inline void __syncthreads() { cuda_host::sync_block(); }
inline void __syncwarp() { cuda_host::sync_warp(); }

template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int distance) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  memcpy(&bits, &value, sizeof(T));
  bits = cuda_host::shuffle(mask, bits, cuda_host::thread_index.x % 32 ^ uint32_t(distance));
  memcpy(&value, &bits, sizeof(T));
  return value;
}
inline uint32_t __ballot_sync(uint32_t mask, bool predicate) { return cuda_host::ballot(mask, predicate); }
inline int __ffs(int a) { return __builtin_ffs(a); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline void __stwb(uint4* to, uint4 from) { *to = from; }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)a * b >> 64); }
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return uint32_t(uint64_t(a) * b >> 32); }

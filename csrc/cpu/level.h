// Owns: the choice of an instruction-set level from what the processor and its operating system support.
// Must not know: the kernels. Header-only, because the kernels' dispatch and the facts of the build both ask.
#pragma once
#include <stdlib.h>
#include <string.h>

namespace focal_ext::cpu {

constexpr const char* kLevels[] = {"baseline", "x86-64-v3", "x86-64-v4"};

// Index into kLevels: the best supported level, or the lower one that FOCAL_EXT_CPU_LEVEL names.
inline int detect_level() {
  int best = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2")) best = 1;
  if (best == 1 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    best = 2;
#endif
  const char* wanted = getenv("FOCAL_EXT_CPU_LEVEL");
  for (int level = 0; wanted && level < best; ++level)
    if (strcmp(wanted, kLevels[level]) == 0) return level;
  return best;
}

}  // namespace focal_ext::cpu

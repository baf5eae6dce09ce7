// Owns: the facts of the build that build_info() tells, as C functions of the library. No op needs them. A program that
// uses include/focal_ext/torch.h refers to the version, so that a linker which drops libraries nobody refers to keeps
// the one whose ops register themselves.
// Must not know: torch, Python.
#include "build_facts.h"

#include <string.h>

#include "cpu/level.h"

#define EXPORTED extern "C" __attribute__((visibility("default")))

// The facts of build_facts.h.in, and "cpu_level", the instruction set in use. Null for a name that this version does
// not know.
EXPORTED const char* focal_ext_fact(const char* name) {
  if (strcmp(name, "cpu_level") == 0) return focal_ext::cpu::kLevels[focal_ext::cpu::detect_level()];
  for (const auto& fact : kFacts)
    if (strcmp(name, fact[0]) == 0) return fact[1];
  return nullptr;
}

EXPORTED const char* focal_ext_version() { return focal_ext_fact("version"); }

// Owns: the CPU implementation's interface, in plain pointers.
// Must not know: torch. Threads come from the caller, so a program without torch can pass its own loop.
#pragma once
#include <stdint.h>

#include "../problem.h"

namespace focal_ext::cpu {

// Calls body(context, i) for every i in [0, n), in any order, from any threads.
using ParallelFor = void (*)(int64_t n, void (*body)(void* context, int64_t i), void* context);

// Computes every result of the problem that is not null.
void run(const Problem& problem, ParallelFor parallel_for);

void run(const Pyramid& pyramid, ParallelFor parallel_for);

// Index of the first class id that is neither ignored, nor in [0, classes), nor background where there is such a thing:
// -1, or of more classes than one their number. -1 if there is none.
int64_t first_bad_id(const Problem& problem, bool background, ParallelFor parallel_for);

// Equally many neighbours for each of the factors, acc_t[groups], are multiplied by it; those of a factor of 1 are not
// touched.
void scale(void* gradient, Scalar scalar, int64_t numel, const void* factors, int64_t groups, ParallelFor parallel_for);

// The instruction set in use: "baseline", "x86-64-v3" or "x86-64-v4". The environment variable FOCAL_EXT_CPU_LEVEL
// lowers it.
const char* level();

}  // namespace focal_ext::cpu

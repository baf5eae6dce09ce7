// Owns: the two words that the kernels' text adds to CUDA's: a shared array, and a place where a test plants a defect.
// Must not know: any kernel. The tests define both words before this file, to run the same text on a CPU
// (tests/cuda_host).
#pragma once

// An array of the block, uninitialised.
#ifndef FOCAL_EXT_SHARED
#define FOCAL_EXT_SHARED(type, name, extent) __shared__ type name extent
#endif

// Whether to make the named mistake here, which the suite must notice: never, in a library.
#ifndef FOCAL_EXT_PLANTED
#define FOCAL_EXT_PLANTED(defect) false
#endif

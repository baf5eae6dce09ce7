// Owns: the one word that the kernels' text adds to CUDA's: a shared array.
// Must not know: any kernel. The tests define it before this file, to run the same text on a CPU (tests/cuda_host).
#pragma once

// An array of the block, uninitialised.
#ifndef FOCAL_EXT_SHARED
#define FOCAL_EXT_SHARED(type, name, extent) __shared__ type name extent
#endif

// Owns: the focal kernels for f64 logits.
// Must not know: anything else; one file per type, so that they compile side by side.
#include "start.cuh"

template const char* focal_ext::cuda::start_focal<double>(const Problem&, const Arguments<double>&, uint32_t, void*);

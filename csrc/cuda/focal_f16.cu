// Owns: the focal kernels for f16 logits.
// Must not know: anything else; one file per type, so that they compile side by side.
#include "start.cuh"

template const char* focal_ext::cuda::start_focal<__half>(const Problem&, const Arguments<__half>&, uint32_t, void*);
template const char* focal_ext::cuda::start_pyramid<__half>(
    const LossParameters&, const PyramidArguments<__half>&, uint32_t, void*);

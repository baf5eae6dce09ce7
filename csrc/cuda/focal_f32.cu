// Owns: the focal kernels for f32 logits.
// Must not know: anything else; one file per type, so that they compile side by side.
#include "start.cuh"

template const char* focal_ext::cuda::start_focal<float>(const Problem&, const Arguments<float>&, uint32_t, void*);
template const char* focal_ext::cuda::start_pyramid<float>(
    const LossParameters&, const PyramidArguments<float>&, uint32_t, void*);

// Owns: the focal kernels for bf16 logits.
// Must not know: anything else; one file per type, so that they compile side by side.
#include "start.cuh"

template const char* focal_ext::cuda::start_focal<__nv_bfloat16>(
    const Problem&, const Arguments<__nv_bfloat16>&, uint32_t, void*);
template const char* focal_ext::cuda::start_pyramid<__nv_bfloat16>(
    const LossParameters&, const PyramidArguments<__nv_bfloat16>&, uint32_t, void*);

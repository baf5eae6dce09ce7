// Owns: the softmax kernels for all types of logits.
// Must not know: anything else.
#include "softmax_start.cuh"

namespace focal_ext::cuda {

template const char* start_softmax<float>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);
template const char* start_softmax<double>(
    const Problem&, const Normaliser<double>&, double*, const RowBatch<double>&, uint32_t, void*);
template const char* start_softmax<__nv_bfloat16>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);
template const char* start_softmax<__half>(
    const Problem&, const Normaliser<float>&, float*, const RowBatch<float>&, uint32_t, void*);

}  // namespace focal_ext::cuda

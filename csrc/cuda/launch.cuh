// Owns: the one place that starts kernels, and the reading of its errors.
// Must not know: any kernel.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

namespace focal_ext::cuda {

// Starts kernel(arguments...) on `blocks` blocks; nullptr, or the error's text. Where there is no nvcc, the tests
// supply the device.
template <class... Parameters, class... Values>
const char* launch(
    void (*kernel)(Parameters...), uint32_t blocks, uint32_t threads, void* stream, const Values&... arguments) {
#ifdef __CUDACC__
  kernel<<<blocks, threads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
#else
  (void)stream;
  cuda_host::launch(blocks, threads, [&] { kernel(arguments...); });
  return nullptr;
#endif
}

}  // namespace focal_ext::cuda

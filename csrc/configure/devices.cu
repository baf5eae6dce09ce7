// Owns: the trial of an nvcc: it compiles and links if nvcc, its host compiler and its runtime library fit together.
// Run, it prints the compute capability of each visible device, "9.0", one a line.
// Must not know: anything of focal_ext.
#include <cuda_runtime.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#if __cplusplus < 202002L
#error the host compiler does not know C++20
#endif

__global__ void nothing() {}

int main() {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess) return 1;
  for (int device = 0; device < count; ++device) {
    int major = 0, minor = 0;
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    printf("%d.%d\n", major, minor);
  }
}

// Owns: how logits are read and written, one at a time or 16 bytes at a time, and their conversion to float and back.
// Must not know: any formula, any index.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <stdint.h>
#include <string.h>

#include "../problem.h"

namespace focal_ext::cuda {

// Logits as C++ knows them, the type they are computed in, and their name in a Problem.
template <class scalar_t>
struct Storage;
template <>
struct Storage<float> {
  using acc_t = float;
  static constexpr Scalar scalar = Scalar::f32;
};
template <>
struct Storage<double> {
  using acc_t = double;
  static constexpr Scalar scalar = Scalar::f64;
};
template <>
struct Storage<__nv_bfloat16> {
  using acc_t = float;
  static constexpr Scalar scalar = Scalar::bf16;
};
template <>
struct Storage<__half> {
  using acc_t = float;
  static constexpr Scalar scalar = Scalar::f16;
};

template <class scalar_t>
using acc_of = typename Storage<scalar_t>::acc_t;

inline __device__ float widen(float x) { return x; }
inline __device__ double widen(double x) { return x; }
inline __device__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline __device__ float widen(__half x) { return __half2float(x); }
inline __device__ float widen(uint8_t x) { return float(x); }

template <class scalar_t>
__device__ scalar_t narrow(acc_of<scalar_t> x) {
  return scalar_t(x);
}
template <>
inline __device__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}
template <>
inline __device__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}

// 16 bytes of logits: what one lane moves per load and store.
template <class scalar_t>
constexpr int kVector = int(16 / sizeof(scalar_t));

template <class To, class From>
__device__ To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(static_cast<void*>(&to), &from, sizeof(to));
  return to;
}

inline __device__ void unpack(uint32_t word, float* x, float) { x[0] = reinterpret<float>(word); }
inline __device__ void unpack(uint32_t word, float* x, __nv_bfloat16) {
  x[0] = reinterpret<float>(word << 16);
  x[1] = reinterpret<float>(word & 0xffff0000u);
}
inline __device__ void unpack(uint32_t word, float* x, __half) {
  const float2 both = __half22float2(reinterpret<__half2>(word));
  x[0] = both.x;
  x[1] = both.y;
}

inline __device__ uint32_t pack(const float* x, float) { return reinterpret<uint32_t>(x[0]); }
inline __device__ uint32_t pack(const float* x, __nv_bfloat16) {
  return reinterpret<uint32_t>(__floats2bfloat162_rn(x[0], x[1]));
}
inline __device__ uint32_t pack(const float* x, __half) { return reinterpret<uint32_t>(__floats2half2_rn(x[0], x[1])); }

template <class scalar_t>
__device__ void unpack(uint4 words, float (&x)[kVector<scalar_t>]) {
  constexpr int per_word = kVector<scalar_t> / 4;
  unpack(words.x, x, scalar_t());
  unpack(words.y, x + per_word, scalar_t());
  unpack(words.z, x + 2 * per_word, scalar_t());
  unpack(words.w, x + 3 * per_word, scalar_t());
}

template <class scalar_t>
__device__ uint4 pack(const float (&x)[kVector<scalar_t>]) {
  constexpr int per_word = kVector<scalar_t> / 4;
  return {pack(x, scalar_t()), pack(x + per_word, scalar_t()), pack(x + 2 * per_word, scalar_t()),
      pack(x + 3 * per_word, scalar_t())};
}

inline bool is_aligned(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

}  // namespace focal_ext::cuda

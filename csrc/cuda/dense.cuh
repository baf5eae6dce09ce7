// Owns: dense targets of 0 and 1 beside the hot loop: a positive is a negative seen in the mirror.
// Must not know: how targets were found to be 0 and 1, flows.
#pragma once
#include "coefficients.cuh"

namespace focal_ext::cuda {

template <class scalar_t, class target_t>
struct Hard {
  static constexpr int kSize = kVector<scalar_t>;
  using Loaded = TargetWords<kSize* int(sizeof(target_t))>;
  float factor;
  float ratio;  // alpha of a positive over that of a negative
  const target_t* targets;

  template <class Elements>
  __device__ Loaded load(Elements offset) const {
    return Loaded::at(targets + offset);
  }
  template <class Elements>
  __device__ void advance(Elements elements) {
    targets += elements;
  }

  struct Vector {
    float factor, ratio;
    Loaded loaded;

    __device__ bool is_positive(int j) const {
      constexpr int size = int(sizeof(target_t));
      return loaded.words[j * size / 4] & (~0u >> (32 - 8 * size)) << 8 * (j * size % 4);
    }
    template <class Math, class Loss, class T>
    __device__ ValueAndGradient<T> term(const Loss& loss, T x, int j) const {
      float z[Math::width], own[Math::width], gradient[Math::width];
      Math::store(z, x);
#pragma unroll
      for (int i = 0; i < Math::width; ++i) {
        z[i] = is_positive(j + i) ? -z[i] : z[i];
        own[i] = is_positive(j + i) ? ratio : 1.f;
      }
      const ValueAndGradient<T> t = negative_times<Math>(loss, Math::load(z), Math::load(own));
      Math::store(gradient, t.gradient);
#pragma unroll
      for (int i = 0; i < Math::width; ++i) gradient[i] = is_positive(j + i) ? -gradient[i] : gradient[i];
      return {t.value, Math::load(gradient)};
    }
    static __device__ float total(float value) { return value; }
  };
  __device__ Vector next(const Loaded& loaded) const { return {factor, ratio, loaded}; }
};

}  // namespace focal_ext::cuda

// Owns: the hot loop, a tile of negatives as one stream of 16-byte vectors.
// Must not know: labels, rows, columns: no index arithmetic but a pointer per stream.
#pragma once
#include "targets.cuh"

namespace focal_ext::cuda {

// float or Pair by the chip; bf16 and fp16 need less than float's accuracy, unless the formula multiplies an error.
using StreamLanes = std::conditional_t<FOCAL_EXT_PACKED, Pair, float>;
template <class scalar_t, class Loss>
using StreamMath = Stream<StreamLanes, sizeof(scalar_t) == 2 && !is_exact<Loss> ? Grade::half : Grade::single>;

// One lane's vectors of a tile. Vectors in flight are independent of each other, so their instructions interleave.
template <class scalar_t, Flow flow, class Loss>
struct NegativeStream {
  using Math = StreamMath<scalar_t, Loss>;
  using T = typename Math::value_t;
  static constexpr int kSize = kVector<scalar_t>;
  // Vectors in flight: 16 logits, or 8 where a second stream or a longer formula needs the registers.
  static constexpr int kInFlight = (flow == Flow::chain || (kSize == 8 && is_exact<Loss>) ? 8 : 16) / kSize;

  const scalar_t* inputs;
  const scalar_t* upstream;
  scalar_t* results;  // gradient or loss map
  float factor;       // of the gradient or of the loss map
  const Loss& loss;
  float sum = 0;  // of values without alpha

  static __device__ uint4 load(const scalar_t* from) { return *reinterpret_cast<const uint4*>(from); }

  __device__ void run(uint32_t vectors, uint32_t lane) {
    advance(lane * kSize);
    for (; vectors >= 32 * kInFlight; vectors -= 32 * kInFlight) {
      batch<kInFlight>();
      advance(kInFlight * 32 * kSize);
    }
#pragma unroll 1
    for (; lane < vectors + FOCAL_EXT_PLANTED(stream_tail); lane += 32) {
      batch<1>();
      advance(32 * kSize);
    }
  }

  __device__ void advance(uint32_t elements) {
    inputs += elements;
    if constexpr (flow == Flow::chain) upstream += elements;
    if constexpr (flow != Flow::loss) results += elements;
  }

  template <int count>
  __device__ void batch() {
    uint4 x[count], chain[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      x[u] = load(inputs + u * 32 * kSize);
      if constexpr (flow == Flow::chain) chain[u] = load(upstream + u * 32 * kSize);
    }
    uint32_t exceptional = 0;
#pragma unroll
    for (int u = 0; u < count; ++u)
      if (!vector(x[u], chain[u], u * 32 * kSize)) exceptional |= 1u << u;
    if (exceptional) {
#pragma unroll 1
      for (int u = 0; u < count; ++u)
        if (exceptional >> u & 1) one_by_one(u * 32 * kSize);
    }
  }

  // False, and nothing written or added, if the vector holds +inf or NaN.
  __device__ bool vector(uint4 words, uint4 chain_words, uint32_t offset) {
    float x[kSize], chain[kSize], result[kSize];
    unpack<scalar_t>(words, x);
    if constexpr (flow == Flow::chain) unpack<scalar_t>(chain_words, chain);
    T values = Math::constant(0);
#pragma unroll
    for (int j = 0; j < kSize; j += Math::width) {
      const auto term = loss.template negative<Math>(Math::load(x + j));
      values = values + term.value;
      T scaled = (flow == Flow::loss_map ? term.value : term.gradient) * Math::constant(factor);
      if constexpr (flow == Flow::chain) scaled = scaled * Math::load(chain + j);
      Math::store(result + j, scaled);
    }
    const float value = Math::sum(values);
    const bool finite = value < INFINITY;
    sum += finite ? value : 0.f;
    if constexpr (flow != Flow::loss) {
      const uint4 packed = pack<scalar_t>(result);
      if (finite) *reinterpret_cast<uint4*>(results + offset) = packed;
    }
    return finite;
  }

  __device__ void one_by_one(uint32_t offset) {
#pragma unroll 1
    for (uint32_t i = offset; i < offset + kSize; ++i) {
      const auto term = loss.template negative<DeviceFloat>(widen(inputs[i]));
      sum += term.value;
      float scaled = (flow == Flow::loss_map ? term.value : term.gradient) * factor;
      if constexpr (flow == Flow::chain) scaled *= widen(upstream[i]);
      if constexpr (flow != Flow::loss) results[i] = narrow<scalar_t>(scaled);
    }
  }
};

}  // namespace focal_ext::cuda

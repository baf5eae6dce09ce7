// Owns: the hot loop, a tile of negatives as one stream of 16-byte vectors.
// Must not know: labels, rows, columns: no index arithmetic but a pointer per stream. A Walk tells what lies between two vectors of a lane
// (marks.cuh, pyramid.cuh), and what is no negative there.
#pragma once
#include "targets.cuh"

namespace focal_ext::cuda {

// float or Pair by the chip.
using StreamLanes = std::conditional_t<FOCAL_EXT_PACKED, Pair, float>;
// bf16 and fp16 need less than float's accuracy, unless the formula multiplies an error, or a loss map of fp16 should be correctly rounded.
template <class scalar_t, Flow flow, class Loss>
constexpr Grade stream_grade =
    sizeof(scalar_t) == 2 && !is_exact<Loss> && !(flow == Flow::loss_map && std::is_same_v<scalar_t, __half>) ? Grade::half : Grade::single;

// One lane's vectors of a tile. Vectors in flight are independent of each other, so their instructions interleave.
template <class scalar_t, Flow flow, class Loss, class Walk>
struct NegativeStream {
  static constexpr Grade kGrade = stream_grade<scalar_t, flow, Loss>;
  using Math = Stream<StreamLanes, kGrade>;
  using T = typename Math::value_t;
  static constexpr int kSize = kVector<scalar_t>;
  // Vectors in flight: 16 logits, or 8 where a second stream or a longer formula needs the registers.
  static constexpr int kInFlight = (flow == Flow::chain || (kSize == 8 && is_exact<Loss>) ? 8 : 16) / kSize;

  const scalar_t* inputs;
  const scalar_t* upstream;
  scalar_t* results;  // gradient or loss map
  float factor;       // of the gradient or of the loss map
  const Loss& loss;
  Walk walk;
  float sum = 0;  // of values without alpha

  static __device__ uint4 load(const scalar_t* from) { return *reinterpret_cast<const uint4*>(from); }

  __device__ void run(uint32_t vectors, uint32_t lane) {
    advance(lane * kSize);
    for (; vectors >= 32 * kInFlight; vectors -= 32 * kInFlight) {
      batch<kInFlight>(vectors);
      advance(kInFlight * walk.step);
    }
#pragma unroll 1
    for (int to_go = int(vectors + FOCAL_EXT_PLANTED(stream_tail)); int(lane) < to_go; to_go -= 32) {
      batch<1>(uint32_t(to_go));
      advance(walk.step);
    }
  }

  template <class Elements>
  __device__ void advance(Elements elements) {
    inputs += elements;
    if constexpr (flow == Flow::chain) upstream += elements;
    if constexpr (flow != Flow::loss) results += elements;
  }

  template <int count>
  __device__ void batch(uint32_t to_go) {
    uint4 x[count], chain[count];
#pragma unroll
    for (int u = 0; u < count; ++u) {
      x[u] = load(inputs + u * walk.step);
      if constexpr (flow == Flow::chain) chain[u] = load(upstream + u * walk.step);
    }
    if (walk.is_marked(count)) patch(x, chain, to_go);
    uint32_t exceptional = 0;
#pragma unroll
    for (int u = 0; u < count; ++u)
      if (!vector(walk.seen(x[u]), chain[u], u * walk.step, !walk.is_special(uint32_t(u), to_go - 32 * u))) exceptional |= 1u << u;
    if (exceptional) {
#pragma unroll 1
      for (int u = 0; u < count; ++u)
        if (exceptional >> u & 1) one_by_one(u * walk.step, to_go - 32 * u);
    }
    walk.pass(count);
  }

  // One text for all vectors, picked out of their registers: this is rare, and long.
  template <int count>
  __device__ void patch(uint4 (&x)[count], uint4 (&chain)[count], uint32_t to_go) {
#pragma unroll 1
    for (int u = 0; u < count; ++u) {
      uint4 words = x[0], factors = {};
      if constexpr (flow == Flow::chain) factors = chain[0];
#pragma unroll
      for (int v = 1; v < count; ++v) {
        if (u == v) words = x[v];
        if constexpr (flow == Flow::chain)
          if (u == v) factors = chain[v];
      }
      walk.template patch<flow == Flow::chain>(words, factors, uint32_t(u), to_go - 32 * u);
#pragma unroll
      for (int v = 0; v < count; ++v) {
        if (u == v) x[v] = words;
        if constexpr (flow == Flow::chain)
          if (u == v) chain[v] = factors;
      }
    }
  }

  // False, and nothing written or added, if the vector is not `plain` or holds +inf or NaN.
  template <class Elements>
  __device__ bool vector(uint4 words, uint4 chain_words, Elements offset, bool plain) {
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
    const bool done = plain && value < INFINITY;
    sum += done ? value : 0.f;
    if constexpr (flow != Flow::loss) {
      const uint4 packed = pack<scalar_t>(result);
      if (done) *reinterpret_cast<uint4*>(results + offset) = packed;
    }
    return done;
  }

  template <class Elements>
  __device__ void one_by_one(Elements offset, uint32_t to_go) {
#pragma unroll 1
    for (uint32_t j = 0; j < kSize; ++j) {
      const Elements i = offset + j;
      Term<float> term;
      const bool counts = walk.template term<kGrade>(widen(inputs[i]), j, to_go, loss, term);
      float scaled = (flow == Flow::loss_map ? term.value : term.gradient) * factor;
      if constexpr (flow == Flow::chain) scaled *= widen(upstream[i]);
      if (counts) sum += term.value;
      if constexpr (flow != Flow::loss) results[i] = narrow<scalar_t>(counts ? scaled : 0.f);
    }
    walk.heard(to_go);
  }
};

}  // namespace focal_ext::cuda

// Owns: the hot loop, a tile of negatives as one stream of 16-byte vectors.
// Must not know: labels, rows, columns: no index arithmetic but a pointer per stream. A Walk tells what lies between
// two vectors of a lane (marks.cuh, pyramid.cuh), and what is no negative there; Coefficients what multiplies a term
// (coefficients.cuh).
#pragma once
#include "targets.cuh"

namespace focal_ext::cuda {

// float or Pair by the chip.
using StreamLanes = std::conditional_t<FOCAL_EXT_PACKED, Pair, float>;
// bf16 and fp16 need less than float's accuracy, unless the formula multiplies an error, or a loss map of fp16 should
// be correctly rounded.
template <class scalar_t, Flow flow, class Loss>
constexpr Grade stream_grade =
    sizeof(scalar_t) == 2 && !is_exact<Loss> && !(flow == Flow::loss_map && std::is_same_v<scalar_t, __half>)
        ? Grade::half
        : Grade::single;

// One factor for all.
struct Uniform {
  static constexpr bool kPerLogit = false;
  float factor;  // of the gradient or of the loss map

  __device__ Uniform next() const { return *this; }
  template <class Math, class Loss, class T>
  __device__ auto term(const Loss& loss, T x, int) const {
    return loss.template negative<Math>(x);
  }
  static __device__ float total(float value) { return value; }
};

// One lane's vectors of a tile. Vectors in flight are independent of each other, so their instructions interleave.
template <class scalar_t, Flow flow, class Loss, class Walk, class Coefficients = Uniform>
struct NegativeStream {
  static constexpr Grade kGrade = stream_grade<scalar_t, flow, Loss>;
  using Math = Stream<StreamLanes, kGrade>;
  using T = typename Math::value_t;
  static constexpr int kSize = kVector<scalar_t>;
  // Vectors in flight: 16 logits, or 8 where a second stream or a longer formula needs the registers.
  static constexpr bool has_many = flow == Flow::chain || (kSize == 8 && is_exact<Loss>);
  static constexpr int kInFlight = (has_many ? 8 : 16) / kSize;
  // Rarer coefficients share one loop for the loss with and without its gradient.
  static constexpr bool may_lack_results = !std::is_same_v<Coefficients, Uniform>;

  const scalar_t* inputs;
  const scalar_t* upstream;
  scalar_t* results;  // gradient or loss map
  Coefficients coefficients;
  const Loss& loss;
  Walk walk;
  bool stores = true;
  float sum = 0;  // of values without what multiplies them all

  static __device__ uint4 load(const scalar_t* from) { return *reinterpret_cast<const uint4*>(from); }

  __device__ void run(uint32_t vectors, uint32_t lane) {
    advance(lane * kSize);
    for (; vectors >= 32 * kInFlight; vectors -= 32 * kInFlight) {
      batch<kInFlight>(vectors);
      advance(kInFlight * walk.step);
    }
#pragma unroll 1
    for (int to_go = int(vectors); int(lane) < to_go; to_go -= 32) {
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
      if (!vector(walk.seen(x[u]), chain[u], u * walk.step, !walk.is_special(uint32_t(u), to_go - 32 * u)))
        exceptional |= 1u << u;
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
    const auto k = coefficients.next();
    T values = Math::constant(0);
#pragma unroll
    for (int j = 0; j < kSize; j += Math::width) {
      const auto term = k.template term<Math>(loss, Math::load(x + j), j);
      values = values + term.value;
      T scaled = (flow == Flow::loss_map ? term.value : term.gradient) * Math::constant(k.factor);
      if constexpr (flow == Flow::chain) scaled = scaled * Math::load(chain + j);
      Math::store(result + j, scaled);
    }
    const float value = k.total(Math::sum(values));
    const bool done = plain && (may_lack_results ? fabsf(value) : value) < INFINITY;  // a weight may be negative
    sum += done ? value : 0.f;
    if constexpr (flow != Flow::loss) {
      const uint4 packed = pack<scalar_t>(result);
      if (done && (!may_lack_results || stores)) *reinterpret_cast<uint4*>(results + offset) = packed;
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
      float scaled = (flow == Flow::loss_map ? term.value : term.gradient) * coefficients.factor;
      if constexpr (flow == Flow::chain) scaled *= widen(upstream[i]);
      if (counts) sum += term.value;
      if constexpr (flow != Flow::loss)
        if (!may_lack_results || stores) results[i] = narrow<scalar_t>(counts ? scaled : 0.f);
    }
    walk.heard(to_go);
  }
};

}  // namespace focal_ext::cuda

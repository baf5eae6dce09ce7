// Owns: weights of rows and of classes and alphas of classes beside the hot loop: tables in shared memory, and what
// each vector takes of them.
// Must not know: logits, labels, flows.
#pragma once
#include "stream.cuh"

namespace focal_ext::cuda {

// Where a lane's next vector begins, from the beginning of the tile's first row on. It goes 32 vectors further each
// time.
template <class scalar_t>
struct Position {
  const Arguments<scalar_t>& a;
  uint32_t element;

  // Exact for up to kMaxPositionClasses: the reciprocal is rounded up here.
  __device__ uint32_t row() const { return __umulhi(element, a.classes_reciprocal + 1); }
  __device__ uint32_t class_in(uint32_t row) const { return element - row * a.classes; }
  __device__ void advance() { element += 32 * kVector<scalar_t>; }
};
constexpr uint32_t kMaxPositionClasses = 1u << 15;

// One factor for all, in a loop that may store nothing.
struct Common : Uniform {
  __device__ Common next() const { return *this; }
};

// p^gamma times a factor, for losses that multiply value and gradient by it: one product for both.
template <class Modulator, class T>
struct Times {
  static constexpr bool is_one = false;
  const Modulator& modulator;
  T factor;

  template <class Math>
  __device__ T slope() const {
    return modulator.template slope<Math>();
  }
  template <class Math>
  __device__ T of_probability(T z, T p, T negative_part, T log1p_e) const {
    return modulator.template of_probability<Math>(z, p, negative_part, log1p_e) * factor;
  }
};
// Of any power there are no registers left.
template <class Loss>
constexpr bool takes_times = false;
template <class Modulator>
constexpr bool takes_times<SigmoidFocal<Modulator>> = !std::is_same_v<Modulator, AnyModulator>;
template <class Modulator, class Second>
constexpr bool takes_times<FocalNegatives<Modulator, Second>> = !std::is_same_v<Modulator, AnyModulator>;

// A factor for each of the logits of a vector.
template <int size>
struct Each {
  float factor, of[size];

  template <class Math, class Loss, class T>
  __device__ ValueAndGradient<T> term(const Loss& loss, T x, int j) const {
    const T own = Math::load(of + j);
    if constexpr (takes_times<Loss>) {
      return sigmoid_focal_hard<Math>(x, Times<decltype(loss.modulator), T>{loss.modulator, own});
    } else {
      const ValueAndGradient<T> t = loss.template negative<Math>(x);
      return {t.value * own, t.gradient * own};
    }
  }
  static __device__ float total(float value) { return value; }
};

// One for a vector.
struct Whole : Uniform {
  float of;
  __device__ float total(float value) const { return of * value; }
};

// A weight for each row. `whole`: every vector lies in one row; else in two at most.
template <class scalar_t, bool whole>
struct PerRow {
  static constexpr bool kPerLogit = !whole;
  static constexpr int kSize = kVector<scalar_t>;
  float factor;
  const float* weights;
  Position<scalar_t> at;

  __device__ auto next() {
    const uint32_t row = at.row();
    const float first = weights[row];
    if constexpr (whole) {
      at.advance();
      return Whole{{factor * first}, first};
    } else {
      const uint32_t left = at.a.classes - at.class_in(row);  // in the row
      const float second = weights[row + 1];                  // one slot more than rows
      Each<kSize> k = {factor, {}};
      const uint32_t in_second = ~0u << (left < kSize ? left : kSize);  // all comparisons in a bit each
#pragma unroll
      for (uint32_t j = 0; j < kSize; ++j) k.of[j] = in_second >> j & 1 ? second : first;
      at.advance();
      return k;
    }
  }
};

// Factors of classes lie in shared memory as often as it takes to read four of any class on at once, the k-th time k
// slots further, and go on at the first class after the last one.
constexpr uint32_t kClassSlots = 2048;

inline __host__ __device__ uint32_t class_copies(uint32_t classes) { return classes % 4 == 0 ? 1 : 4; }
// a vector more, and the shift
inline __host__ __device__ uint32_t class_pitch(uint32_t classes) { return (classes + 8 + 3 + 3) / 4 * 4; }
// Of one class the position's reciprocal is no number of 32 bits.
inline bool fits_class_slots(int64_t classes) {
  return classes > 1 && classes < kClassSlots &&
         class_copies(uint32_t(classes)) * class_pitch(uint32_t(classes)) <= kClassSlots;
}

// Whole block.
template <class F>
__device__ void fill_class_slots(float* slots, uint32_t classes, F factor_of) {
  const uint32_t pitch = class_pitch(classes), copies = class_copies(classes);
  for (uint32_t i = threadIdx.x; i < copies * pitch; i += kThreads) {
    const uint32_t copy = i / pitch, slot = i - copy * pitch;
    slots[i] = slot < copy ? 0.f : factor_of((slot - copy) % classes);
  }
}

template <class scalar_t>
struct PerClass {
  static constexpr bool kPerLogit = true;
  static constexpr int kSize = kVector<scalar_t>;
  float factor;
  const float* slots;
  Position<scalar_t> at;

  __device__ Each<kSize> next() {
    const uint32_t c = at.class_in(at.row()), copy = (0 - c) % 4;
    const float4* const from = reinterpret_cast<const float4*>(slots + copy * (class_pitch(at.a.classes) + 1) + c);
    Each<kSize> k = {factor, {}};
#pragma unroll
    for (int j = 0; j < kSize / 4; ++j) {
      const float4 four = from[j];
      k.of[4 * j] = four.x, k.of[4 * j + 1] = four.y, k.of[4 * j + 2] = four.z, k.of[4 * j + 3] = four.w;
    }
    at.advance();
    return k;
  }
};

}  // namespace focal_ext::cuda

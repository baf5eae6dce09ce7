// Owns: weights of rows and of classes and alphas of classes beside the hot loop: a table in shared memory, and what each vector takes of it.
// Must not know: logits, labels, flows.
#pragma once
#include "stream.cuh"

namespace focal_ext::cuda {

// Where a lane's next vector begins, in the tile. It goes 32 vectors further each time.
template <class scalar_t>
struct Position {
  const Arguments<scalar_t>& a;
  uint32_t element;

  // Exact for up to kMaxPositionClasses and elements of a tile: the reciprocal is rounded up here.
  __device__ uint32_t row() const { return __umulhi(element, a.classes_reciprocal + 1); }
  __device__ uint32_t class_in(uint32_t row) const { return element - row * a.classes; }
  __device__ void advance() { element += 32 * kVector<scalar_t>; }
};
constexpr uint32_t kMaxPositionClasses = 1u << 15;

// A factor for each of the logits of a vector.
template <int size>
struct Each {
  float factor, of[size];

  template <class Math, class T>
  __device__ T add(T values, T value, int j) const {
    return Math::fma(value, Math::load(of + j), values);
  }
  template <class Math, class T>
  __device__ T scale(T result, int j) const {
    return (result * Math::load(of + j)) * Math::constant(factor);
  }
  static __device__ float total(float value) { return value; }
};

// One for a vector.
struct Whole : Uniform {
  float of;
  __device__ float total(float value) const { return of * value; }
};

// A weight for each row. `whole`: every vector lies in one row.
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
#pragma unroll
      for (uint32_t j = 0; j < kSize; ++j) k.of[j] = j < left ? first : second;
      at.advance();
      return k;
    }
  }
};

// Factors of classes lie in shared memory as often as it takes to read four of any class on at once, the k-th time k slots further, and go
// on at the first class after the last one.
constexpr uint32_t kClassSlots = 2048;

inline __host__ __device__ uint32_t class_copies(uint32_t classes) { return classes % 4 == 0 ? 1 : 4; }
inline __host__ __device__ uint32_t class_pitch(uint32_t classes) { return (classes + 8 + 3 + 3) / 4 * 4; }  // a vector more, and the shift
// Of one class the position's reciprocal is no number of 32 bits.
inline bool fits_class_slots(int64_t classes) {
  return classes > 1 && classes < kClassSlots && class_copies(uint32_t(classes)) * class_pitch(uint32_t(classes)) <= kClassSlots;
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

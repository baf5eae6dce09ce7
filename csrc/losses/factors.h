// Owns: what multiplies a term besides its weight, made of the factors for a target of 1 and of 0.
// Must not know: any one loss.
#pragma once
#include "primitives.h"

namespace focal_ext {

// alpha_t of a target that may be soft.
struct MixedFactor {
  template <class T>
  static FOCAL_EXT_INLINE T of(T t, T of_one, T of_zero) {
    return of_one * t + of_zero * (T(1) - t);
  }
  // The factor of the class that a class id names.
  template <class T>
  static FOCAL_EXT_INLINE T of_named(T score, T of_one, T of_zero) {
    return of(score, of_one, of_zero);
  }
};

// A dense target above 0 is a positive, and so is the class that a class id names, whatever its score.
struct ChosenFactor {
  template <class T>
  static FOCAL_EXT_INLINE T of(T t, T of_one, T of_zero) {
    return t > T(0) ? of_one : of_zero;
  }
  template <class T>
  static FOCAL_EXT_INLINE T of_named(T, T of_one, T) {
    return of_one;
  }
};

// For losses without alpha, whose factors are equal.
struct EqualFactor {
  template <class T>
  static FOCAL_EXT_INLINE T of(T, T of_one, T) {
    return of_one;
  }
  template <class T>
  static FOCAL_EXT_INLINE T of_named(T, T of_one, T) {
    return of_one;
  }
};

}  // namespace focal_ext

// Owns: a loss by its value alone, as docs/adding_a_loss.md makes one: cross entropy + epsilon (1 - p_t) (Leng et al.
// 2022, "PolyLoss").
// Must not know: its derivative, kernels.
#pragma once
#include "dual.h"

namespace focal_ext {

struct Poly1 {
  using Factor = EqualFactor;
  double epsilon;

  template <class Math, class T>
  FOCAL_EXT_INLINE T value(T x, T t) const {
    const Sigmoid<Math> s(x);
    const T not_t = Math::constant(1) - t, not_p_t = Math::fma(s.p, not_t, s.q * t);
    return Math::fma(Math::constant(epsilon), not_p_t, CrossEntropy<Math>(s, x, t, not_t).ce);
  }
};

template <bool fast, class F>
auto with_poly1(const double* numbers, F&& f) {
  return f(FromValue<Poly1>{{numbers[0]}});
}

}  // namespace focal_ext

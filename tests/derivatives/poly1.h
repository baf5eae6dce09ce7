// Owns: a loss by its value alone, as docs/adding_a_loss.md makes one: cross entropy + epsilon (1 - p_t) (Leng et al.
// 2022, "PolyLoss").
// Must not know: its derivative, kernels.
#pragma once
#include "../../csrc/losses/dual.h"

struct Poly1 {
  using Factor = focal_ext::EqualFactor;
  double epsilon;

  template <class Math, class T>
  FOCAL_EXT_INLINE T value(T x, T t) const {
    const focal_ext::Sigmoid<Math> s(x);
    const T not_t = Math::constant(1) - t, not_p_t = Math::fma(s.p, not_t, s.q * t);
    return Math::fma(Math::constant(epsilon), not_p_t, focal_ext::CrossEntropy<Math>(s, x, t, not_t).ce);
  }
};

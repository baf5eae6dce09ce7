// Owns: the chip's instructions that C++ has no word for, one or two floats at a time, with a host version of each; the
// only place with inline PTX.
// Must not know: any loss, any tensor, any loop.
#pragma once
#include "primitives.h"

// Issue 2 numbers per instruction where the chip can (sm_100 and later).
#if !defined(FOCAL_EXT_PACKED) && defined(__CUDA_ARCH__)
#define FOCAL_EXT_PACKED (__CUDA_ARCH__ >= 1000)
#elif !defined(FOCAL_EXT_PACKED)
#define FOCAL_EXT_PACKED 0
#endif

// On the host every approximate instruction passes its correctly rounded result through this, with its documented error
// in ULP: a test may replace it to prove the error bounds.
#ifndef FOCAL_EXT_APPROXIMATE
#define FOCAL_EXT_APPROXIMATE(result, units) (result)
#endif

namespace focal_ext {

// 2^a, at most 2 ULP from the correctly rounded result; results below 2^-126 are 0.
FOCAL_EXT_INLINE float exp2_approx(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return a < -126.f ? 0.f : FOCAL_EXT_APPROXIMATE(::exp2f(a), 2);
#endif
}

// 1 / a for normal a, error 1 ULP; results below 2^-126 are 0.
FOCAL_EXT_INLINE float reciprocal_approx(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return a > 8.50705917e37f ? 0.f : FOCAL_EXT_APPROXIMATE(1.f / a, 1);
#endif
}

// The smaller of a and b; NaN if either is.
FOCAL_EXT_INLINE float min_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a < b || a != a ? a : b;
#endif
}

// The larger of a and b; NaN if either is.
FOCAL_EXT_INLINE float max_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
#else
  return a > b || a != a ? a : b;
#endif
}

// log2(a) for a in [2^-126, 1/2], relative error 2^-22.
FOCAL_EXT_INLINE float log2_approx(float a) {
#ifdef __CUDA_ARCH__
  float result;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
  return result;
#else
  return FOCAL_EXT_APPROXIMATE(::log2f(a), 4);
#endif
}

FOCAL_EXT_INLINE float fused(float a, float b, float c) { return ::fmaf(a, b, c); }

// Two floats in an aligned pair of registers: one instruction for both from sm_100 on.
struct Pair {
  float low, high;
};

FOCAL_EXT_INLINE Pair fused(Pair a, Pair b, Pair c) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
  Pair d;
  asm("{ .reg .b64 a, b, c, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; mov.b64 c, {%6, %7};"
      " fma.rn.f32x2 d, a, b, c; mov.b64 {%0, %1}, d; }"
      : "=f"(d.low), "=f"(d.high)
      : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high), "f"(c.low), "f"(c.high));
  return d;
#else
  return {::fmaf(a.low, b.low, c.low), ::fmaf(a.high, b.high, c.high)};
#endif
}
// {a.low op b.low, a.high op b.high}
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define FOCAL_EXT_PAIR_OPERATOR(op, name)                                      \
  FOCAL_EXT_INLINE Pair operator op(Pair a, Pair b) {                          \
    Pair d;                                                                    \
    asm("{ .reg .b64 a, b, d; mov.b64 a, {%2, %3}; mov.b64 b, {%4, %5}; " name \
        ".rn.f32x2 d, a, b;"                                                   \
        " mov.b64 {%0, %1}, d; }"                                              \
        : "=f"(d.low), "=f"(d.high)                                            \
        : "f"(a.low), "f"(a.high), "f"(b.low), "f"(b.high));                   \
    return d;                                                                  \
  }
#else
#define FOCAL_EXT_PAIR_OPERATOR(op, name)                                                          \
  FOCAL_EXT_INLINE Pair operator op(Pair a, Pair b) { return {a.low op b.low, a.high op b.high}; }
#endif
FOCAL_EXT_PAIR_OPERATOR(*, "mul")
FOCAL_EXT_PAIR_OPERATOR(+, "add")
FOCAL_EXT_PAIR_OPERATOR(-, "sub")
#undef FOCAL_EXT_PAIR_OPERATOR

// What differs between one float and two: how a constant spreads, and what has no packed instruction.
template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  static constexpr int width = 1;
  static FOCAL_EXT_INLINE float spread(float c) { return c; }
  static FOCAL_EXT_INLINE float load(const float* x) { return *x; }
  static FOCAL_EXT_INLINE void store(float* x, float a) { *x = a; }
  static FOCAL_EXT_INLINE float sum(float a) { return a; }
  template <class F, class... A>
  static FOCAL_EXT_INLINE float each(F f, A... a) {
    return f(a...);
  }
};
template <>
struct Lanes<Pair> {
  static constexpr int width = 2;
  static FOCAL_EXT_INLINE Pair spread(float c) { return {c, c}; }
  static FOCAL_EXT_INLINE Pair load(const float* x) { return {x[0], x[1]}; }
  static FOCAL_EXT_INLINE void store(float* x, Pair a) { x[0] = a.low, x[1] = a.high; }
  static FOCAL_EXT_INLINE float sum(Pair a) { return a.low + a.high; }
  template <class F, class... A>
  static FOCAL_EXT_INLINE Pair each(F f, A... a) {
    return {f(a.low...), f(a.high...)};
  }
};

}  // namespace focal_ext

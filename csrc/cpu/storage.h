// Owns: how logits, targets and class ids are read from and written to memory on the CPU.
// Must not know: losses. No standard library in here: these files are compiled once per instruction set, and an inline
// function of the library compiled for AVX-512 must not be the one the linker keeps for every machine.
#pragma once
#include <stdint.h>

#include "../losses/primitives.h"
#include "../problem.h"

namespace focal_ext {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

namespace {  // so that no copy of a function is one the linker could keep for every instruction set

typedef uint16_t __attribute__((may_alias)) Half;  // of a float
constexpr int kHighHalf = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, kLowHalf = 1 - kHighHalf;

inline float load(const float& a) { return a; }
inline double load(const double& a) { return a; }
inline float load(const uint8_t& a) { return float(a); }
inline float load(const int8_t& a) { return float(a); }
inline float load(const int16_t& a) { return float(a); }
inline float load(const int32_t& a) { return float(a); }
inline double load(const int64_t& a) { return double(a); }
inline float load(const BFloat16& a) { return float_of(uint32_t(a.bits) << 16); }
inline float load(const Float16& a) {
  const uint32_t magnitude = uint32_t(a.bits & 0x7fff) << 13, sign = uint32_t(a.bits & 0x8000) << 16;
  // 2^112 moves the exponent's bias, subnormals included
  const uint32_t finite = bits_of(float_of(magnitude) * 5.192296858534828e33f);
  return float_of(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : finite));
}

// Round to nearest even, without a branch so that the loops around them vectorise.
inline void store(float& to, float a) { to = a; }
inline void store(double& to, double a) { to = a; }
inline void store(BFloat16& to, float a) {
  const uint32_t b = bits_of(a);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  to.bits = uint16_t((b & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}
inline void store(Float16& to, float a) {
  const uint32_t b = bits_of(a), magnitude = b & 0x7fffffffu;
  const uint32_t normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // the addition rounds at 2^-24, fp16's last place
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;
  const uint32_t finite = magnitude < 0x38800000u ? subnormal : normal;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u : 0x7c00u;
  to.bits = uint16_t((b >> 16 & 0x8000u) | (magnitude >= 0x477ff000u ? special : finite));
}

// The bits of |a|, which are ordered like the numbers, infinity and NaN last.
inline uint32_t magnitude(float a) { return bits_of(a) & 0x7fffffffu; }
inline uint16_t magnitude(BFloat16 a) { return a.bits & 0x7fff; }
inline uint64_t magnitude(double a) {
  uint64_t b;
  __builtin_memcpy(&b, &a, 8);
  return b & 0x7fffffffffffffffu;
}

template <class scalar_t>
struct accumulate {
  using type = float;
};
template <>
struct accumulate<double> {
  using type = double;
};

// A class id widened before any comparison. A uint64 beyond int64 stays outside every range instead of wrapping to
// background.
template <class Id>
inline int64_t widened(Id id) {
  return int64_t(id);
}
inline int64_t widened(uint64_t id) { return id > uint64_t(INT64_MAX) ? INT64_MAX : int64_t(id); }

// Calls f with the class ids as they are stored.
template <class F>
auto with_ids(const Problem& p, F f) {
  switch (p.target) {
    case Target::u8: return f(static_cast<const uint8_t*>(p.targets));
    case Target::i8: return f(static_cast<const int8_t*>(p.targets));
    case Target::u16: return f(static_cast<const uint16_t*>(p.targets));
    case Target::i16: return f(static_cast<const int16_t*>(p.targets));
    case Target::u32: return f(static_cast<const uint32_t*>(p.targets));
    case Target::i32: return f(static_cast<const int32_t*>(p.targets));
    case Target::u64: return f(static_cast<const uint64_t*>(p.targets));
    default: return f(static_cast<const int64_t*>(p.targets));
  }
}

// Calls f with the dense targets as they are stored: integers, or numbers.
template <class F>
auto with_dense_integers(const Problem& p, F f) {
  switch (p.target) {
    case Target::dense_i8: return f(static_cast<const int8_t*>(p.targets));
    case Target::dense_i16: return f(static_cast<const int16_t*>(p.targets));
    case Target::dense_i32: return f(static_cast<const int32_t*>(p.targets));
    case Target::dense_i64: return f(static_cast<const int64_t*>(p.targets));
    default: return f(static_cast<const uint8_t*>(p.targets));
  }
}
template <class F>
auto with_dense(const Problem& p, F f) {
  if (are_integers(p.target)) return with_dense_integers(p, f);
  if (p.scalar == Scalar::f64) return f(static_cast<const double*>(p.targets));
  if (p.target == Target::dense_scalar && p.scalar == Scalar::bf16) return f(static_cast<const BFloat16*>(p.targets));
  if (p.target == Target::dense_scalar && p.scalar == Scalar::f16) return f(static_cast<const Float16*>(p.targets));
  return f(static_cast<const float*>(p.targets));
}

inline int64_t label_at(const Problem& p, int64_t row) {
  return with_ids(p, [row](const auto* ids) { return widened(ids[row]); });
}

enum class Row { background, positive, ignored, bad };

inline Row row_kind(const Problem& p, int64_t label) {
  if (p.has_ignore_index && label == p.ignore_index) return Row::ignored;
  if (label >= 0 && label < p.classes) return Row::positive;
  return label == -1 || label == other_background(p.classes) ? Row::background : Row::bad;
}

}  // namespace
}  // namespace focal_ext

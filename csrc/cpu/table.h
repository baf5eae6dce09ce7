// Owns: the results of every logit that a half type can hold, and the loop that looks them up instead of computing
// them.
// Must not know: formulas, rows, planes, and the standard library (see storage.h).
#pragma once
#include "block.h"
#include "kernels.h"

// bf16 and fp16 have 65,536 values, so a large call computes each of them once. A detector's logits are a few hundred
// neighbouring values of bf16, whose entries stay in the first-level cache. Every loss and gamma takes the same time,
// at every instruction-set level. Gradients and loss maps have the formula's bits.
namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// A special element interrupts a look-up, which costs 16 ns more than the formula's: with more of them in a block, that
// is cheaper.
constexpr int64_t kFewSpecials = 12;

typedef double Entries __attribute__((vector_size(16)));     // two entries
typedef float Floats __attribute__((vector_size(16)));
typedef uint32_t Words __attribute__((vector_size(16)));

template <class Vector>
Vector every_second(Vector a, Vector b, int first) {
  static_assert(sizeof(Vector) == 16);
#ifdef __clang__
  return first ? __builtin_shufflevector(a, b, 1, 3, 5, 7) : __builtin_shufflevector(a, b, 0, 2, 4, 6);
#else
  return __builtin_shuffle(a, b, Words{0, 2, 4, 6} + uint32_t(first));
#endif
}

// The sum of n logits' values; what is to be stored goes to `to` unless it is null. Entries are loaded in pairs, the
// even and the odd logits apart, as a load and a store for each number would wait for three address units: 0.37 ns.
template <bool stores>
FOCAL_EXT_ONE_COPY double look_up(const Entry* table, const uint16_t* x, int64_t n, uint16_t* to) {
  Floats even = {}, odd = {};
  const auto pair = [&](int64_t i, int64_t j) FOCAL_EXT_INLINE_LAMBDA {
    Entries both;
    __builtin_memcpy(&both, table + x[i], sizeof(Entry));
    __builtin_memcpy(reinterpret_cast<char*>(&both) + sizeof(Entry), table + x[j], sizeof(Entry));
    return both;
  };
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const Entries a = pair(i, i + 2), b = pair(i + 4, i + 6), c = pair(i + 1, i + 3), d = pair(i + 5, i + 7);
    even += every_second(Floats(a), Floats(b), 0);
    odd += every_second(Floats(c), Floats(d), 0);
    if constexpr (stores) {
      const Words low = every_second(Words(a), Words(b), 1), high = every_second(Words(c), Words(d), 1);
      const Words both = kLowHalf == 0 ? low | high << 16 : low << 16 | high;
      __builtin_memcpy(to + i, &both, sizeof(both));
    }
  }
  double total = 0;
  for (int lane = 0; lane < 4; ++lane) total += double(even[lane]) + double(odd[lane]);
  for (; i < n; ++i) {
    const Entry entry = table[x[i]];
    total += double(entry.value);
    if constexpr (stores) to[i] = uint16_t(entry.stored);
  }
  return total;
}

// A block of negatives that are looked up, but for the elements that are told, in their order.
class LookedUp {
 public:
  LookedUp(const Problem& p, const Entry* table, int64_t begin)
      : is_bf16_(p.scalar == Scalar::bf16), table_(table), x_(static_cast<const uint16_t*>(p.inputs) + begin) {
    void* const results = p.gradient ? p.gradient : p.loss_map;
    to = results ? static_cast<uint16_t*>(results) + begin : nullptr;
  }

  FOCAL_EXT_ONE_COPY void negatives_until(int64_t at) {
    total += to ? look_up<true>(table_, x_ + done_, at - done_, to + done_)
                : look_up<false>(table_, x_ + done_, at - done_, nullptr);
    done_ = at;
  }
  FOCAL_EXT_ONE_COPY void add_range(int64_t first, int64_t last, bool bad) {
    negatives_until(first);
    const uint16_t constant = !bad ? 0 : is_bf16_ ? 0x7fc0 : 0x7e00;
    for (int64_t i = first; to && i < last; ++i) to[i] = constant;
    if (bad) total = __builtin_nan("");
    done_ = last;
  }
  // Leaves out one element; returns its logit.
  FOCAL_EXT_ONE_COPY float skip(int64_t at) {
    negatives_until(at);
    done_ = at + 1;
    return is_bf16_ ? load(BFloat16{x_[at]}) : load(Float16{x_[at]});
  }

  uint16_t* to;  // where results go; null: nowhere
  double total = 0;  // of values, without the factor of negatives

 private:
  const bool is_bf16_;
  const Entry* const table_;
  const uint16_t* const x_;
  int64_t done_ = 0;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

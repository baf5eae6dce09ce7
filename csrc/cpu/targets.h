// Owns: the dense targets of a block: which steps have others than 0, and which elements are ignored or bad.
// Must not know: formulas, factors, and the standard library (see storage.h).
#pragma once
#include "block.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// With more of them the whole block takes the formula for any target.
constexpr int64_t kFewSteps = 6;

struct NonzeroSteps {
  int64_t count = 0;
  int64_t at[kFewSteps + 1];  // by number, in order
};

// True when every target is 0; NaN is not.
template <class target_t>
bool is_zero(const target_t* t, int64_t n) {
  int nonzero = 0;
#pragma omp simd reduction(| : nonzero)
  for (int64_t i = 0; i < n; ++i) nonzero |= !(load(t[i]) == 0);
  return !nonzero;
}

// Targets [begin, begin + n), in place or in `buffer`, as load_block has it.
template <class acc_t>
FOCAL_EXT_ONE_COPY const acc_t* load_targets(const Problem& p, int64_t begin, int64_t n, acc_t* buffer) {
  if (!are_integers(p.target))
    return load_block(p.targets, p.target == Target::dense_acc ? Scalar::f32 : p.scalar, begin, n, buffer);
  with_dense_integers(p, [=](const auto* stored) { widen(stored + begin, n, buffer); });
  return buffer;
}

// Finds the steps of a block with a target other than 0. Returns whether they are few, and all else is negatives.
FOCAL_EXT_ONE_COPY bool find_steps(NonzeroSteps& found, const Problem& p, int64_t begin, int64_t n) {
  if (ignored_target(p) == 0) return false;
  return with_dense(p, [&](const auto* targets) {
    const auto* const t = targets + begin;
    for (int64_t step = 0; step * kStep < n && found.count <= kFewSteps; ++step) {
      const int64_t at = step * kStep;
      if (!is_zero(t + at, n - at < kStep ? n - at : kStep)) found.at[found.count++] = step;
    }
    return found.count <= kFewSteps;
  });
}

// Ignored targets, and integers other than 0 and 1, which are bad unless they are ignored, as bits of 1 and 2.
template <class acc_t>
FOCAL_EXT_ONE_COPY int unusual(const acc_t* t, int64_t n, acc_t ignored, bool integers) {
  int is_ignored = 0, is_bad = 0;
#pragma omp simd reduction(| : is_ignored)
  for (int64_t i = 0; i < n; ++i) is_ignored |= t[i] == ignored;
  if (!integers) return is_ignored;
#pragma omp simd reduction(| : is_bad)
  for (int64_t i = 0; i < n; ++i) is_bad |= (t[i] > 1) | (t[i] < 0);
  return is_ignored + 2 * is_bad;
}

// The ignored count 0 whatever logit, weight and upstream factor are, and the bad are NaN. Returns whether there are
// ignored ones.
template <class acc_t>
FOCAL_EXT_ONE_COPY bool replace_unusual(Block<acc_t>& b, const Problem& p, const acc_t* t, int64_t n) {
  const acc_t ignored = acc_t(ignored_target(p));
  const bool integers = are_integers(p.target);
  const int found = unusual(t, n, ignored, integers);
  for (int64_t i = 0; found && i < n; ++i) {
    if (t[i] == ignored) b.x[i] = b.t[i] = b.value[i] = b.gradient[i] = 0;
    else if (integers && (t[i] > 1 || t[i] < 0)) b.value[i] = b.gradient[i] = acc_t(__builtin_nan(""));
  }
  return found & 1;
}

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

// Owns: what softmax losses of logits in planes have in common: every loop runs over a strip's neighbouring positions,
// class by class.
// Must not know: formulas, targets, threads, tensors, and the standard library (see storage.h). Compiled once per
// instruction set.
#pragma once
#include "softmax_rows.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// A row's class, or a row's largest class, in lanes as wide as its numbers.
template <class acc_t>
struct class_index {
  using type = int32_t;
};
template <>
struct class_index<double> {
  using type = int64_t;
};

// Calls f with memory of logits' type as it is stored.
template <class F>
void with_stored(const void* memory, Scalar scalar, F f) {
  switch (scalar) {
    case Scalar::f64: return f(static_cast<const double*>(memory));
    case Scalar::bf16: return f(static_cast<const BFloat16*>(memory));
    case Scalar::f16: return f(static_cast<const Float16*>(memory));
    default: return f(static_cast<const float*>(memory));
  }
}

// Sums of a strip's classes, one a position: acc_t over kPart classes, double beyond.
template <class acc_t>
struct StripSums {
  static constexpr int64_t kPart = 16;
  double total[kMaxStrip] = {};
  acc_t part[kMaxStrip] = {};

  void close(int64_t c, int64_t classes, int64_t width) {
    if ((c + 1) % kPart != 0 && c + 1 < classes) return;
#pragma omp simd
    for (int64_t i = 0; i < width; ++i) total[i] += double(part[i]), part[i] = 0;
  }
};

// The problem is one image of one level, as in planes.h. Loops run over whole steps; what lies beyond the strip is
// never stored.
template <class acc_t>
class SoftmaxPlanes : protected SoftmaxRows<acc_t> {
 protected:
  using Base = SoftmaxRows<acc_t>;
  using Math = typename Base::Math;
  using Class = typename class_index<acc_t>::type;
  using Base::classes_;
  using Base::p_;

  SoftmaxPlanes(const Problem& problem, const Strip& strip, const Common& common, int64_t kept_logits)
      : Base(problem, common.scale), strip_(strip), n_(strip.count), width_(whole_steps(strip.count)),
        keeps_(problem.classes * width_ <= kept_logits), direct_(!is_half(problem.scalar) && n_ == width_) {}

  int64_t first_of(int64_t c) const { return (strip_.anchor * classes_ + c) * strip_.positions + strip_.first; }
  int64_t row_of(int64_t i) const { return (strip_.first + i) * strip_.anchors + strip_.anchor; }

  // Where a class has its numbers in a buffer: a place of its own, if they are kept from pass to pass.
  int64_t place(int64_t c) const { return keeps_ ? c * width_ : 0; }

  // In place, or in `buffer`.
  const acc_t* logits(int64_t c, acc_t* buffer) const {
    return load_block(p_.inputs, p_.scalar, first_of(c), n_, buffer);
  }
  // From the second pass on, of a buffer that keeps them: planes lie apart by a power of two often, of which a cache
  // holds few.
  const acc_t* logits_again(int64_t c, acc_t* buffer) const { return keeps_ ? buffer + place(c) : logits(c, buffer); }

  // One of memory: for what is rare.
  FOCAL_EXT_ONE_COPY acc_t logit(int64_t c, int64_t i) const {
    acc_t found = 0;
    with_stored(p_.inputs, p_.scalar, [&](const auto* x) { found = acc_t(load(x[first_of(c) + i])); });
    return found;
  }

  // Asks for lines of the second-level cache. No processor guesses where the next plane lies. Inlined: the compiler
  // takes a call out that does nothing else.
  FOCAL_EXT_INLINE void prefetch(const void* tensor, int64_t first, int64_t n) const {
    const int64_t size = size_of(p_.scalar);
    constexpr int kSecondLevel = 2;
    for (int64_t i = 0; i < n * size; i += 64)
      __builtin_prefetch(static_cast<const char*>(tensor) + first * size + i, 0, kSecondLevel);
  }

  // Before read(): no logit is known.
  template <bool places>
  void begin(acc_t* top, Class* at) const {
    for (int64_t i = 0; i < width_; ++i) top[i] = acc_t(-__builtin_inf());
    for (int64_t i = 0; places && i < width_; ++i) at[i] = 0;
  }

  // Reads a class into the buffer: the largest logits so far, NaN left out, and where they are.
  template <bool places>
  FOCAL_EXT_ONE_COPY void read(int64_t c, acc_t* top, Class* at, acc_t* buffer) const {
    acc_t* const own = buffer + place(c);
    const acc_t* const x = logits(c, own);
    const Class here = Class(c);
    for (int64_t first = 0; first < width_; first += kStep)
#pragma omp simd
      for (int64_t i = first; i < first + kStep; ++i) {
        if constexpr (places) at[i] = x[i] > top[i] ? here : at[i];
        top[i] = x[i] > top[i] ? x[i] : top[i];
        own[i] = x[i];
      }
  }

  // 1, or NaN as in SoftmaxRows.
  acc_t defined_at(int64_t i, acc_t top) const {
    if (Math::abs(top) < acc_t(__builtin_inf())) return 1;
    int64_t not_below = 0;
    for (int64_t c = 0; c < classes_; ++c) not_below += !(logit(c, i) < top);
    return not_below > 1 ? acc_t(__builtin_nan("")) : acc_t(1);
  }

  // What the derivatives are multiplied by.
  FOCAL_EXT_ONE_COPY void read_upstream(acc_t* upstream) const {
    for (int64_t i = 0; i < n_; ++i) upstream[i] = this->scale_;
    if (!p_.grad_output_per_element) return;
    with_stored(p_.grad_output, p_.scalar, [&](const auto* g) {
      for (int64_t i = 0; i < n_; ++i) upstream[i] *= acc_t(load(g[row_of(i)]));
    });
  }

  // Stores the losses of the strip's rows, if they are wanted, and returns their sum.
  FOCAL_EXT_ONE_COPY double finish(const acc_t* values) const {
    if (p_.loss_map)
      with_stored(p_.loss_map, p_.scalar, [&]<class scalar_t>(const scalar_t*) {
        for (int64_t i = 0; i < n_; ++i) store(static_cast<scalar_t*>(p_.loss_map)[row_of(i)], values[i]);
      });
    return p_.loss ? sum(values, n_) : 0;
  }

  // Where a plane's gradients are to be written before put().
  acc_t* gradient_at(int64_t c, acc_t* buffer) const {
    return direct_ ? static_cast<acc_t*>(p_.gradient) + first_of(c) : buffer;
  }
  void put(int64_t c, const acc_t* gradient) const {
    if (!direct_) store_block(gradient, n_, p_.gradient, p_.scalar, first_of(c));
  }

  // Rows that are not computed have a constant, whatever their logits are.
  static void replace(const bool* unread, const acc_t* constant, int64_t n, acc_t* values) {
    for (int64_t i = 0; i < n; ++i) values[i] = unread[i] ? constant[i] : values[i];
  }

  const Strip strip_;
  const int64_t n_, width_;
  const bool keeps_, direct_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

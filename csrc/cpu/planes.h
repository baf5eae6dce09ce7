// Owns: elements that lie in planes, as a convolution writes them: for each anchor of an image [classes, positions].
// Must not know: formulas, threads, tensors, and the standard library (see storage.h).
#pragma once
#include "elements.h"
#include "labels.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The problem is one image of one level: its rows are the level's anchors, position by position, and row p A + a has its class c at
// offset (a classes + c) positions + p. A strip is a block of neighbouring positions of one anchor, with all their classes.
template <class Math, class Loss>
class Planes : Factors<typename Math::value_t, typename Loss::Factor> {
  using acc_t = typename Math::value_t;
  using Base = Factors<acc_t, typename Loss::Factor>;
  using Base::p_, Base::scale_, Base::uniform_;

 public:
  Planes(const Problem& problem, const Loss& loss, const Common& common) : Base(problem, common), table_(common.table), elements_(problem, loss, common) {}

  double run(const Strip& strip) const {
    SpecialRows labels;
    find_special_rows(labels, p_, row_of(strip, 0), strip.count, strip.anchors);
    double total = 0;
    for (int64_t c = 0; c < p_.classes; ++c) total += plane(labels, strip, c);
    return total;
  }

 private:
  int64_t row_of(const Strip& strip, int64_t i) const { return (strip.first + i) * strip.anchors + strip.anchor; }

  double plane(const SpecialRows& labels, const Strip& strip, int64_t c) const {
    const int64_t begin = (strip.anchor * p_.classes + c) * strip.positions + strip.first, n = strip.count;
    int64_t specials_here = 0;
    for (int64_t i = 0; i < labels.count; ++i) specials_here += labels.label[i] == c || labels.label[i] < 0;
    if constexpr (Elements<Math, Loss>::has_halves)
      if (table_ && specials_here <= kFewSpecials) return looked_up(labels, strip, c, begin);
    alignas(64) acc_t buffer[kBlock];
    const acc_t* const x = load_block(p_.inputs, p_.scalar, begin, n, buffer);
    if (uniform_ && !specials_here) return elements_.uniform(x, begin, n, nullptr);
    const Upstream<acc_t> upstream(p_, scale_, begin, n);
    Specials<acc_t> specials;
    for (int64_t i = 0; i < labels.count; ++i) {
      const int64_t at = labels.at[i], label = labels.label[i];
      if (label == c) this->add_positive(specials, at, row_of(strip, at), c, x[at], upstream[at]);
      else if (label < 0) specials.add_range(at, at + 1, label == kBad);
    }
    if (uniform_) return elements_.uniform(x, begin, n, &specials);
    Block<acc_t> b;
    for (int64_t i = 0; i < n; ++i) this->fill(b, i, row_of(strip, i), c, x[i], 0, upstream[i]);
    b.pad(n);
    return elements_.varied(b, begin, n, &specials);
  }

  FOCAL_EXT_ONE_COPY double looked_up(const SpecialRows& labels, const Strip& strip, int64_t c, int64_t begin) const {
    LookedUp block(p_, table_, begin);
    Specials<acc_t> specials;
    for (int64_t i = 0; i < labels.count; ++i) {
      const int64_t at = labels.at[i], label = labels.label[i];
      if (label == c) this->add_positive(specials, at, row_of(strip, at), c, acc_t(block.skip(at)), acc_t(scale_));
      else if (label < 0) block.add_range(at, at + 1, label == kBad);
    }
    return elements_.finish(block, specials, strip.count);
  }

  const Entry* const table_;
  const Elements<Math, Loss> elements_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

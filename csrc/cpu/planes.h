// Owns: elements that lie in planes, as a convolution writes them: for each anchor of an image [classes, positions].
// Must not know: formulas, threads, tensors, and the standard library (see storage.h).
#pragma once
#include "elements.h"
#include "labels.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The blocks of a loss, called by address: a strip is walked by one text for all losses.
template <class acc_t>
struct AnyElements {
  const void* elements;
  double (*uniform)(const void*, const acc_t* x, int64_t begin, int64_t n, Specials<acc_t>*);
  double (*varied)(const void*, const Block<acc_t>&, int64_t begin, int64_t n, Specials<acc_t>*);
  double (*finish)(const void*, LookedUp&, Specials<acc_t>&, int64_t n);
};

template <class Math, class Loss>
AnyElements<typename Math::value_t> any_elements(const Elements<Math, Loss>& elements) {
  using acc_t = typename Math::value_t;
  using Of = Elements<Math, Loss>;
  return {&elements, [](const void* of, const acc_t* x, int64_t begin, int64_t n, Specials<acc_t>* s) {
    return static_cast<const Of*>(of)->uniform(x, begin, n, s);
  }, [](const void* of, const Block<acc_t>& b, int64_t begin, int64_t n, Specials<acc_t>* s) {
    return static_cast<const Of*>(of)->varied(b, begin, n, s);
  }, [](const void* of, LookedUp& b, Specials<acc_t>& s, int64_t n) {
    if constexpr (Of::has_halves) return static_cast<const Of*>(of)->finish(b, s, n);
    else return 0.;
  }};
}

// The problem is one image of one level: its rows are the level's anchors, position by position, and row p A + a has
// its class c at offset (a classes + c) positions + p. A strip is a block of neighbouring positions of one anchor, with
// all their classes.
template <class acc_t, class Factor>
class Planes : Factors<acc_t, Factor> {
  using Base = Factors<acc_t, Factor>;
  using Base::p_, Base::scale_, Base::uniform_;

 public:
  Planes(const Problem& problem, const Common& common, const AnyElements<acc_t>& elements)
      : Base(problem, common), table_(common.table), any_(elements) {}

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
    if constexpr (sizeof(acc_t) == sizeof(float))  // of double there is no table
      if (table_ && specials_here <= kFewSpecials) return looked_up(labels, strip, c, begin);
    alignas(64) acc_t buffer[kBlock];
    const acc_t* const x = load_block(p_.inputs, p_.scalar, begin, n, buffer);
    if (uniform_ && !specials_here) return any_.uniform(any_.elements, x, begin, n, nullptr);
    const Upstream<acc_t> upstream(p_, scale_, begin, n);
    Specials<acc_t> specials;
    for (int64_t i = 0; i < labels.count; ++i) {
      const int64_t at = labels.at[i], label = labels.label[i];
      if (label == c) this->add_positive(specials, at, row_of(strip, at), c, x[at], upstream[at]);
      else if (label < 0) specials.add_range(at, at + 1, label == kBad);
    }
    if (uniform_) return any_.uniform(any_.elements, x, begin, n, &specials);
    Block<acc_t> b;
    for (int64_t i = 0; i < n; ++i) this->fill(b, i, c, x[i], 0, this->weight_at(row_of(strip, i), c), upstream[i]);
    b.pad(n);
    return any_.varied(any_.elements, b, begin, n, &specials);
  }

  FOCAL_EXT_ONE_COPY double looked_up(const SpecialRows& labels, const Strip& strip, int64_t c, int64_t begin) const {
    LookedUp block(p_, table_, begin);
    Specials<acc_t> specials;
    for (int64_t i = 0; i < labels.count; ++i) {
      const int64_t at = labels.at[i], label = labels.label[i];
      if (label == c) this->add_positive(specials, at, row_of(strip, at), c, acc_t(block.skip(at)), acc_t(scale_));
      else if (label < 0) block.add_range(at, at + 1, label == kBad);
    }
    return any_.finish(any_.elements, block, specials, strip.count);
  }

  const Entry* const table_;
  const AnyElements<acc_t> any_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

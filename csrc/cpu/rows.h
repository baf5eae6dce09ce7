// Owns: elements that lie in rows of classes, [rows, classes]: labels, targets, weights and upstream factors of a chunk
// of them.
// Must not know: formulas, threads, tensors, and the standard library (see storage.h).
#pragma once
#include "elements.h"
#include "labels.h"
#include "targets.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// What lies in a block of rows, of no loss in particular.
template <class acc_t, class Factor>
class RowBlocks : Factors<acc_t, Factor> {
  using Base = Factors<acc_t, Factor>;
  using Base::p_, Base::common_, Base::scale_;

 public:
  using Base::Base, Base::uniform_;

  // Of the rows that lie in the block, those that are not background.
  void find_rows(SpecialRows& rows, int64_t begin, int64_t n) const {
    const int64_t first = begin / p_.classes;
    find_special_rows(rows, p_, first, (begin + n - 1) / p_.classes - first + 1, 1);
  }

  FOCAL_EXT_ONE_COPY void find_specials(
      Specials<acc_t>& specials, const SpecialRows& rows, const acc_t* x, int64_t begin, int64_t n) const {
    each_special(specials, specials, rows, begin, n, [x](int64_t at) { return x[at]; });
  }

  // The same for a block whose negatives are looked up.
  FOCAL_EXT_ONE_COPY void tell_specials(
      LookedUp& block, Specials<acc_t>& positives, const SpecialRows& rows, int64_t begin, int64_t n) const {
    each_special(block, positives, rows, begin, n, [&block](int64_t at) { return acc_t(block.skip(at)); });
  }

  FOCAL_EXT_ONE_COPY void fill_negatives(Block<acc_t>& b, const acc_t* x, int64_t begin, int64_t n) const {
    const Upstream<acc_t> upstream(p_, scale_, begin, n);
    each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
      this->with_weights(row, [&](auto weight) {
        for (int64_t c = first; c < last; ++c)
          this->fill(b, offset + c, c, x[offset + c], 0, weight(c), upstream[offset + c]);
      });
    });
    b.pad(n);
  }

  FOCAL_EXT_ONE_COPY void fill_dense(Block<acc_t>& b, const acc_t* x, int64_t begin, int64_t n) const {
    acc_t buffer[kBlock];
    const acc_t* const t = load_targets(p_, begin, n, buffer);
    if (uniform_) {
      this->fill_alike(b, x, t, n);
    } else {
      const Upstream<acc_t> upstream(p_, scale_, begin, n);
      each_row(begin, n, [&](int64_t row, int64_t first, int64_t last, int64_t offset) {
        this->with_weights(row, [&](auto weight) {
          for (int64_t c = first; c < last; ++c)
            this->fill(b, offset + c, c, x[offset + c], t[offset + c], weight(c), upstream[offset + c]);
        });
      });
    }
    if (replace_unusual(b, p_, t, n)) common_.tell_ignored();
    b.pad(n);
  }

  // The elements of a uniform block's steps, side by side.
  FOCAL_EXT_ONE_COPY void find_specials(
      Specials<acc_t>& specials, const NonzeroSteps& steps, const acc_t* x, int64_t begin, int64_t n) const {
    Block<acc_t>& b = specials.positives;
    int64_t count = 0;
    for (int64_t k = 0; k < steps.count; ++k) {
      const int64_t at = steps.at[k] * kStep, size = n - at < kStep ? n - at : kStep;
      acc_t buffer[kStep];
      const acc_t* const t = load_targets(p_, begin + at, size, buffer);
      for (int64_t i = 0; i < size; ++i) b.x[count + i] = x[at + i], b.t[count + i] = t[i];
      specials.step[k] = steps.at[k];
      count += size;
    }
    specials.steps = steps.count;
    this->fill_alike(b, b.x, b.t, count);
    if (replace_unusual(b, p_, b.t, count)) common_.tell_ignored();
    b.pad(count);
  }

 private:
  template <class Ranges, class Logit>
  void each_special(Ranges& ranges, Specials<acc_t>& positives, const SpecialRows& rows, int64_t begin, int64_t n,
      Logit logit) const {
    const Upstream<acc_t> upstream(p_, scale_, begin, n);
    const int64_t first = begin / p_.classes;
    for (int64_t i = 0; i < rows.count; ++i) {
      const int64_t row = first + rows.at[i], label = rows.label[i], offset = row * p_.classes - begin,
                    end = offset + p_.classes;
      if (label < 0) ranges.add_range(offset > 0 ? offset : 0, end < n ? end : n, label == kBad);
      else if (const int64_t at = offset + label; at >= 0 && at < n)
        this->add_positive(positives, at, row, label, logit(at), upstream[at]);
    }
  }

  // Calls f(row, first class, one past the last, offset in the block) for each row's part of the block.
  template <class F>
  void each_row(int64_t begin, int64_t n, F f) const {
    int64_t row = begin / p_.classes, c = begin - row * p_.classes;
    for (int64_t at = 0; at < n; ++row, c = 0) {
      const int64_t end = c + (n - at) < p_.classes ? c + (n - at) : p_.classes;
      f(row, c, end, at - c);
      at += end - c;
    }
  }
};

// A loss over rows of classes.
template <class Math, class Loss>
class Rows {
  using acc_t = typename Math::value_t;
  using Blocks = RowBlocks<acc_t, typename Loss::Factor>;

 public:
  Rows(const Problem& problem, const Loss& loss, const Common& common)
      : p_(problem), table_(common.table), elements_(problem, loss, common), blocks_(problem, common) {}

  double run(int64_t begin, int64_t end) const {
    const bool prefetches = pays_to_prefetch(),
               prefetches_dense = pays_to_prefetch_dense() && is_dense(p_.target) && p_.scalar == Scalar::f32;
    const int64_t size = size_of(p_.scalar);
    double total = 0;
    for (int64_t at = begin; at < end; at += kBlock) {
      if (prefetches) prefetch_block(p_.inputs, size, at + kAhead * kBlock);
      // Whole lines of floats are written without being read first; halves wait for theirs: bf16 is 13 % faster so,
      // fp32 15 % slower.
      if (prefetches && size == 2 && p_.gradient) prefetch_block(p_.gradient, size, at + kAhead * kBlock);
      if (prefetches_dense) {
        prefetch_block<Cache::second>(p_.inputs, size, at + kDenseAhead * kBlock);
        prefetch_block<Cache::second>(p_.targets, size_of_dense(p_.target, p_.scalar), at + kDenseAhead * kBlock);
      }
      total += block(at, end - at < kBlock ? end - at : kBlock);
    }
    return total;
  }

 private:
  double block(int64_t begin, int64_t n) const {
    alignas(64) acc_t buffer[kBlock];
    Block<acc_t> b;
    if (is_dense(p_.target)) {
      NonzeroSteps steps;
      const bool few = blocks_.uniform_ && find_steps(steps, p_, begin, n);
      if (table_ && few && !steps.count) return looked_up({}, begin, n);
      const acc_t* const x = load_block(p_.inputs, p_.scalar, begin, n, buffer);
      if (few) return uniform(steps, x, begin, n);
      blocks_.fill_dense(b, x, begin, n);
      return elements_.dense(b, begin, n);
    }
    SpecialRows rows;
    blocks_.find_rows(rows, begin, n);
    if (table_ && rows.count <= kFewSpecials) return looked_up(rows, begin, n);
    const acc_t* const x = load_block(p_.inputs, p_.scalar, begin, n, buffer);
    if (blocks_.uniform_) return uniform(rows, x, begin, n);
    Specials<acc_t> specials;
    blocks_.find_specials(specials, rows, x, begin, n);
    blocks_.fill_negatives(b, x, begin, n);
    return elements_.varied(b, begin, n, &specials);
  }

  // A block of negatives but for what was found in it.
  template <class Found>
  double uniform(const Found& found, const acc_t* x, int64_t begin, int64_t n) const {
    if (!found.count) return elements_.uniform(x, begin, n, nullptr);
    Specials<acc_t> specials;
    blocks_.find_specials(specials, found, x, begin, n);
    return elements_.uniform(x, begin, n, &specials);
  }

  double looked_up(const SpecialRows& rows, int64_t begin, int64_t n) const {
    if constexpr (Elements<Math, Loss>::has_halves) {
      LookedUp block(p_, table_, begin);
      Specials<acc_t> specials;
      if (rows.count) blocks_.tell_specials(block, specials, rows, begin, n);
      return elements_.finish(block, specials, n);
    }
    return 0;  // not reached: only halves have a table
  }

  const Problem& p_;
  const Entry* const table_;
  const Elements<Math, Loss> elements_;
  const Blocks blocks_;
};

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

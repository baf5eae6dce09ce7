// Owns: which rows of class ids are not background.
// Must not know: where the elements of a row lie, formulas, and the standard library (see storage.h).
#pragma once
#include "block.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// Of neighbouring rows those that are not background, in order: how far from the first, and the class of a positive or
// one of these.
constexpr int64_t kIgnored = -1, kBad = -2;
struct SpecialRows {
  int64_t count = 0;
  int64_t at[kBlock], label[kBlock];
};

// Rows first, first + step, ..., kBlock of them at most. Nearly all are background: two comparisons each, in a loop of
// its own for every type of id.
FOCAL_EXT_ONE_COPY void find_special_rows(
    SpecialRows& found, const Problem& p, int64_t first, int64_t count, int64_t step) {
  // The two ids of background, but for the one that is ignored.
  const int64_t second = other_background(p.classes);
  const bool ignores_first = p.has_ignore_index && p.ignore_index == -1,
             ignores_second = p.has_ignore_index && p.ignore_index == second;
  const int64_t one = ignores_first ? second : -1, other = ignores_second ? -1 : second;
  const bool is_any = !(ignores_first && ignores_second);
  with_ids(p, [&](const auto* ids) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t label = widened(ids[first + i * step]);
      if (is_any && (label == one || label == other)) continue;
      const Row kind = row_kind(p, label);
      found.at[found.count] = i;
      found.label[found.count++] = kind == Row::positive ? label : kind == Row::ignored ? kIgnored : kBad;
    }
  });
}

}  // namespace
}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

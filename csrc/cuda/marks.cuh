// Owns: the walk through rows whose ids are not all background: which vectors hold what is no negative, and what such
// logits are read as.
// Must not know: flows, how results are stored.
//
// Such a logit is read as -inf, whose value and gradient as a negative are exactly 0 (`vanishes`; of other losses its
// vector goes one by one). So all logits take the same loop, and only the vectors that a special row touches pay for
// it. What a positive gives is computed after the loop, one lane for each row: taking a negative's term back instead
// would lose digits and make NaN of inf - inf.
#pragma once
#include "targets.cuh"

namespace focal_ext::cuda {

// Whether a negative of -inf counts exactly 0 in the stream.
template <class Loss>
constexpr bool vanishes = true;
template <class Modulator>
constexpr bool vanishes<SmoothedSigmoidFocal<Modulator>> = false;

// One bit for each of a lane's vectors.
static_assert(kMaxTileElements <= 32 * 32 * 4);

// Bits [first, end) of 32.
inline __device__ uint32_t bits_between(uint32_t first, uint32_t end) {
  const auto below = [](uint32_t n) { return uint32_t((uint64_t(1) << n) - 1); };
  return below(end) & ~below(first);
}

// For the calling lane, bit k: whether its k-th vector touches a special row, or of a positive's row the positive.
// Whole warp.
template <class scalar_t>
__device__ uint32_t marks_of(const Tile& tile, uint32_t classes, const int* labels, uint32_t lane) {
  uint32_t marks = 0;
  for (uint32_t base = 0; base < tile.rows; base += 32) {
    uint32_t special = __ballot_sync(~0u, base + lane < tile.rows && labels[base + lane] != kBackground);
#pragma unroll 1
    for (; special; special &= special - 1) {
      const uint32_t row = base + uint32_t(__ffs(int(special))) - 1;
      const int label = labels[row];
      const uint32_t row_first = row * classes, first = row_first + (label >= 0 ? uint32_t(label) : 0),
                     end = label >= 0 ? first + 1 : row_first + classes;
      const uint32_t tile_end = tile.offset + tile.elements;
      if (first >= tile_end || end <= tile.offset) continue;  // the positive of a row in several tiles
      const uint32_t from = first > tile.offset ? first - tile.offset : 0,
                     last = (end < tile_end ? end : tile_end) - tile.offset - 1;
      // by this lane, of so many from the tile's first
      const auto passed = [lane](uint32_t vectors) { return (vectors + 31 - lane) / 32; };
      marks |= bits_between(passed(from / kVector<scalar_t>), passed(last / kVector<scalar_t> + 1));
    }
  }
  return marks;
}

// Through rows: a warp reads 512 neighbouring bytes at a time.
template <class scalar_t, bool may_patch, Factors factors = Factors::one>
struct Rows {
  static constexpr uint32_t kSize = kVector<scalar_t>;
  static constexpr uint32_t step = 32 * kSize;  // from one of a lane's vectors to its next, in elements

  const Arguments<scalar_t>& a;
  const Tile& tile;
  const int* labels;  // of the tile's rows, or null: all are negatives
  float* logits;      // of the positives, one slot a row
  uint32_t marks;     // of the lane's vectors from the next on
  const float* weights = nullptr;  // of the rows, where the stream's factor has not all of them

  __device__ uint32_t vectors() const { return tile.elements / kTileUnit * (kTileUnit / kSize); }

  static __device__ uint4 seen(uint4 words) { return words; }
  __device__ bool is_marked(uint32_t count) const { return may_patch && marks & ((1u << count) - 1); }
  __device__ bool is_special(uint32_t u, uint32_t) const { return !may_patch && marks >> u & 1; }
  __device__ void pass(uint32_t count) { marks >>= count; }
  static __device__ void heard(uint32_t) {}

  // In-tile index of the first logit of the lane's vector that has `to_go` vectors to go, itself and those of lower
  // lanes included.
  __device__ uint32_t first_of(uint32_t to_go) const { return (vectors() - to_go + threadIdx.x % 32) * kSize; }

  // Whether the logit is no negative. Of a positive the logit is kept.
  __device__ bool is_other(int label, uint32_t row, uint32_t c, float x) const {
    if (label == int(c)) logits[row] = x;
    return label == int(c) || label == kIgnored || label == kBad;
  }

  // `upstream`: of the logits, if there is one for each.
  template <bool has_upstream>
  __device__ void patch(uint4& words, uint4& upstream, uint32_t u, uint32_t to_go) const {
    if (!(marks >> u & 1)) return;
    float x[kSize], factor[kSize];
    unpack<scalar_t>(words, x);
    if constexpr (has_upstream) unpack<scalar_t>(upstream, factor);
    auto [row, c] = place_of(a, tile, first_of(to_go));
    int label = labels[row];
#pragma unroll
    for (uint32_t j = 0; j < kSize; ++j) {
      if (c == a.classes) ++row, c = 0, label = labels[row];
      if (is_other(label, row, c, x[j])) x[j] = -INFINITY, factor[j] = 0;  // not 0 times infinity
      ++c;
    }
    words = pack<scalar_t>(x);
    if constexpr (has_upstream) upstream = pack<scalar_t>(factor);
  }

  // In units of the stream's factor; false if the logit counts as nothing here.
  template <Grade grade, class Loss>
  __device__ bool term(float x, uint32_t j, uint32_t to_go, const Loss& loss, Term<float>& term) const {
    const auto [row, c] = place_of(a, tile, first_of(to_go) + j);
    const float alpha = factors == Factors::classes && a.alpha ? 1 - a.alpha[c] : 1.f;  // else in the scale
    term = loss.template negative<DeviceFloat>(finite_if(alpha == 0, x));
    if constexpr (!may_patch) {  // the bits that the vector would have had without its special row
      const Term<float> streamed = loss.template negative<Stream<float, grade>>(x);
      if (fabsf(streamed.value) < INFINITY) term = streamed;
    }
    if constexpr (factors != Factors::one) {
      const float weight = weights ? weights[row]
                           : factors == Factors::classes && a.weight_class_stride != 0
                               ? a.weight[c * a.weight_class_stride]
                               : 1.f;
      term = scaled(term, alpha * weight, alpha * weight);
    }
    return !labels || !is_other(labels[row], row, c, x);
  }
};

}  // namespace focal_ext::cuda

// Owns: the CUDA kernels' formula on the CPU, each approximate instruction off by a chosen share of its documented
// bound.
// Must not know: what the results should be.
#include <math.h>
#include <stdint.h>
#include <string.h>

namespace emulation {

// How the results of approximate instructions are off. The fields up to `one_is_exact` mirror test_cuda_math.py's.
struct Errors {
  float bounds;           // an extreme is so many times the documented bound
  uint32_t signs;         // bit i: the sign of the i-th instruction's extreme
  uint64_t random;        // if not 0: the seed of errors between the extremes
  uint32_t one_is_exact;  // a result of 1 has no error
  uint32_t lanes, calls;

  float next() {
    if (!random) return signs >> (calls++ / lanes) & 1 ? -bounds : bounds;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return bounds * (float(random >> 40) * 0x1p-23f - 1);
  }
};

inline thread_local Errors errors;

// The PTX manual bounds these errors in ULP. The instructions flush subnormal results to 0.
inline float approximate(float result, int ulp) {
  const int32_t steps = int32_t(lrintf(errors.next() * float(ulp)));
  if (!isfinite(result) || (errors.one_is_exact && result == 1)) return result;
  int32_t bits;
  memcpy(&bits, &result, 4);
  bits += steps;
  memcpy(&result, &bits, 4);
  return fabsf(result) < 0x1p-126f ? 0.f : result;
}

}  // namespace emulation

#define FOCAL_EXT_APPROXIMATE(result, ulp) emulation::approximate(result, ulp)

#include "../../csrc/losses/primitives.h"

#ifdef PLANT_DEGREE_5
// A defect for the test to find: float's polynomial replaced by the one for half precision.
namespace focal_ext {
template <class Math>
FOCAL_EXT_INLINE typename Math::value_t log1p_polynomial_half(typename Math::value_t w);
}
#define log1p_polynomial log1p_polynomial_half
#endif

#include "../../csrc/losses/careful_float.h"
#include "../../csrc/losses/focal_negatives.h"

namespace {

using namespace focal_ext;
using emulation::errors;

enum Policy { careful, rescue, single, half, packed_single, packed_half };

struct Arrays {
  int64_t count;  // a multiple of the lanes
  const float *logits, *targets;
  float *value, *gradient;
};

template <class Math, class Loss>
void negative(const Arrays& a, const Loss& loss) {
  using L = Lanes<typename Math::value_t>;
  errors.lanes = L::width;
  for (int64_t i = 0; i < a.count; i += L::width) {
    errors.calls = 0;
    const auto term = loss.template negative<Math>(L::load(a.logits + i));
    L::store(a.value + i, term.value);
    L::store(a.gradient + i, term.gradient);
  }
}

template <class Loss>
void dense(const Arrays& a, const Loss& loss) {
  errors.lanes = 1;
  for (int64_t i = 0; i < a.count; ++i) {
    errors.calls = 0;
    const auto term = loss.template dense<CarefulFloat>(a.logits[i], a.targets[i]);
    a.value[i] = term.value;
    a.gradient[i] = term.gradient;
  }
}

}  // namespace

// Value and gradient, without alpha, of negatives; with targets, of those by the careful policy.
extern "C" void evaluate(
    int policy, const LossParameters* parameters, const emulation::Errors* chosen, const Arrays* arrays) {
  errors = *chosen;
  with_loss_by_negatives<true>(*parameters, false, [&]<class Loss>(const Loss& loss) {
    if (arrays->targets) return dense(*arrays, loss);
    if constexpr (!has_hot_loop<Loss>) return negative<CarefulFloat>(*arrays, loss);
    else switch (policy) {
        case careful: return negative<CarefulFloat>(*arrays, loss);
        case rescue: return negative<DeviceFloat>(*arrays, loss);
        case single: return negative<Stream<float, Grade::single>>(*arrays, loss);
        case half: return negative<Stream<float, Grade::half>>(*arrays, loss);
        case packed_single: return negative<Stream<Pair, Grade::single>>(*arrays, loss);
        case packed_half: return negative<Stream<Pair, Grade::half>>(*arrays, loss);
      }
  });
}

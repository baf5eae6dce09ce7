// Owns: the CPU kernels' entry points, compiled once per instruction set (FOCAL_EXT_LEVEL names it).
// Must not know: threads, tensors, and the standard library (see storage.h).
#include "kernels.h"

#include "planes.h"
#include "rows.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// The arithmetic of a loss on float: as cheap as its results permit where it says how they behave, else right for
// everything.
template <class Loss, Precision precision>
auto host_math() {
  if constexpr (requires { Loss::tail; }) return Host<precision, Loss::tail>();
  else return HostFloat();
}

// Processors without AVX2 are rare: half types take float's arithmetic there, which keeps the library small.
#ifdef FOCAL_EXT_FEW_INSTANCES
constexpr Precision kHalf = Precision::single;
#else
constexpr Precision kHalf = Precision::half;
#endif

// Calls kernel(Math, loss) for the problem's arithmetic and loss.
template <class Kernel>
double with_instance(const Problem& problem, Kernel&& kernel) {
  // fp64 is the accurate path, not the fast one: few instances serve every parameter.
  if (problem.scalar == Scalar::f64)
    return with_loss<false>(problem.loss_parameters, [&](const auto& loss) { return kernel(Double(), loss); });
  return with_loss<true>(problem.loss_parameters, [&]<class Loss>(const Loss& loss) {
    if (problem.scalar == Scalar::f32) return kernel(host_math<Loss, Precision::single>(), loss);
    return kernel(host_math<Loss, kHalf>(), loss);
  });
}

}  // namespace

double run_chunk(const Problem& problem, int64_t index, const Common& common) {
  const int64_t begin = index * kChunk, rest = numel(problem) - begin, end = begin + (rest < kChunk ? rest : kChunk);
  return with_instance(problem, [&]<class Math, class Loss>(Math, const Loss& loss) {
    return Rows<Math, Loss>(problem, loss, common).run(begin, end);
  });
}

double run_strip(const Problem& problem, const Strip& strip, const Common& common) {
  return with_instance(problem, [&]<class Math, class Loss>(Math, const Loss& loss) {
    const Elements<Math, Loss> elements(problem, loss, common);
    return Planes<typename Math::value_t, typename Loss::Factor>(problem, common, any_elements(elements)).run(strip);
  });
}

void run_table(const Problem& problem, int64_t index, double scale, Entry* table) {
  with_instance(problem, [&]<class Math, class Loss>(Math, const Loss& loss) {
    if constexpr (Elements<Math, Loss>::has_halves) {
      const Elements<Math, Loss> elements(problem, loss, {scale, nullptr});
      for (int64_t at = index * kChunk; at < (index + 1) * kChunk; at += kBlock) elements.tabulate(at, table);
    }
    return 0.;
  });
}

}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

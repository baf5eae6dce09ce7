// Owns: the CPU kernels' entry points, compiled once per instruction set (FOCAL_EXT_LEVEL names it).
// Must not know: threads, tensors, and the standard library (see storage.h).
#include "kernels.h"

#include "planes.h"
#include "rows.h"

namespace focal_ext::cpu::FOCAL_EXT_LEVEL {
namespace {

// Calls kernel(Math, loss) for the problem's arithmetic and loss.
template <class Kernel>
double with_instance(const Problem& problem, Kernel&& kernel) {
  // fp64 is the accurate path, not the fast one: few instances serve every parameter.
  if (problem.scalar == Scalar::f64) return with_loss<false>(problem.loss_parameters, [&](const auto& loss) { return kernel(Double(), loss); });
  return with_loss<true>(problem.loss_parameters, [&](const auto& loss) { return kernel(HostFloat(), loss); });
}

}  // namespace

double run_chunk(const Problem& problem, int64_t index, double scale) {
  const int64_t begin = index * kChunk, rest = numel(problem) - begin, end = begin + (rest < kChunk ? rest : kChunk);
  return with_instance(problem, [&]<class Math, class Loss>(Math, const Loss& loss) { return Rows<Math, Loss>(problem, loss, scale).run(begin, end); });
}

double run_strip(const Problem& problem, const Strip& strip, double scale) {
  return with_instance(problem, [&]<class Math, class Loss>(Math, const Loss& loss) { return Planes<Math, Loss>(problem, loss, scale).run(strip); });
}

}  // namespace focal_ext::cpu::FOCAL_EXT_LEVEL

// Owns: the choice of the focal kernel for a problem: logits' type, targets' type, modulator.
// Must not know: how the arguments were planned.
#pragma once
#include "focal.cuh"
#include "launch.cuh"

namespace focal_ext::cuda {

inline Ids ids_of(const Problem& p) { return {p.targets, p.target, p.has_ignore_index, p.ignore_index, p.classes}; }

template <class scalar_t, class Targets>
const char* start_with(const Targets& targets, const Arguments<scalar_t>& arguments, double gamma, uint32_t blocks, void* stream) {
  const auto start = [&](auto modulator) {
    return launch(focal_kernel<scalar_t, Targets, decltype(modulator)>, blocks, kThreads, stream, arguments, targets, modulator);
  };
  // fp64 is the accurate path, not the fast one: one kernel serves every gamma.
  if constexpr (sizeof(scalar_t) == 8) return start(AnyModulator(Exponent(gamma)));
  else return with_modulator(gamma, start);
}

// Defined in one file per logits' type, so that they compile side by side.
template <class scalar_t>
const char* start_focal(const Problem& p, const Arguments<scalar_t>& arguments, uint32_t blocks, void* stream) {
  using acc_t = acc_of<scalar_t>;
  const auto dense = [&](auto* targets) {
    using target_t = std::remove_const_t<std::remove_pointer_t<decltype(targets)>>;
    return start_with(DenseTargets<target_t>{targets}, arguments, p.loss_parameters.gamma, blocks, stream);
  };
  if (p.target == Target::dense_u8) return dense(static_cast<const uint8_t*>(p.targets));
  if (p.target == Target::dense_scalar) return dense(static_cast<const scalar_t*>(p.targets));
  if (p.target == Target::dense_acc) return dense(static_cast<const acc_t*>(p.targets));
  return start_with(IdTargets{ids_of(p)}, arguments, p.loss_parameters.gamma, blocks, stream);
}

}  // namespace focal_ext::cuda

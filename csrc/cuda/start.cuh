// Owns: the choice of the focal kernel for a problem or a pyramid: logits' type, kind of targets, loss.
// Must not know: how the arguments were planned.
#pragma once
#include "launch.cuh"
#include "pyramid.cuh"

namespace focal_ext::cuda {

inline Ids ids_of(const Problem& p) {
  return {p.targets, p.target, p.has_ignore_index, p.ignore_index, p.classes, other_background(p.classes)};
}

// Any power of a soft target would cost ids their 64 registers; they matter for the most common loss.
template <class scalar_t, class Loss>
constexpr bool has_kernel_of_ids = sizeof(scalar_t) < 8 && std::is_same_v<Loss, SigmoidFocal<AnyModulator>>;

// Weights of rows stream in loops of their own, a hundred kilobytes each: not for label smoothing, and of losses but
// the focal loss not beside exponents other than their papers'. There a tile whose rows differ in weight goes element
// by element.
template <class Loss>
constexpr bool streams_row_weights = true;
template <>
inline constexpr bool streams_row_weights<SmoothedSigmoidFocal<AnyModulator>> = false;
template <class Second>
inline constexpr bool streams_row_weights<FocalNegatives<AnyModulator, Second>> = false;
template <class Positive>
inline constexpr bool streams_row_weights<Asymmetric<AnyModulator, Positive, true>> = false;

// Defined in one file per logits' type, so that they compile side by side.
template <class scalar_t>
const char* start_focal(const Problem& p, const Arguments<scalar_t>& arguments, uint32_t blocks, void* stream) {
  using acc_t = acc_of<scalar_t>;
  const IdTargets<acc_t> ids = {ids_of(p), static_cast<const acc_t*>(p.scores)};
  const bool streams_dense = is_dense(p.target) && ignored_target(p) != 1 &&
                             (arguments.flow == Flow::loss || arguments.flow == Flow::gradient);
  const DenseTargets<scalar_t> dense = {p.targets, p.target, acc_t(ignored_target(p)), streams_dense};
  const auto start = [&]<class Targets, class Loss>(const Targets& targets, const Loss& loss) {
    Arguments<scalar_t> own = arguments;
    if (!streams_maps<Loss> && (own.flow == Flow::loss_map || own.flow == Flow::chain)) own.flow = Flow::careful;
    const auto of = [&]<Factors factors>() {
      return launch(focal_kernel<scalar_t, Targets, Loss, factors>, blocks, kThreads, stream, own, targets, loss);
    };
    if constexpr (sizeof(scalar_t) < 8 && has_hot_loop<Loss>) {
      if constexpr (streams_row_weights<Loss>)
        if (arguments.factors == Factors::rows) return of.template operator()<Factors::rows>();
      if constexpr (Loss::mirrors)  // the others have no alpha
        if (arguments.factors == Factors::classes) return of.template operator()<Factors::classes>();
    }
    return of.template operator()<Factors::one>();
  };
  // fp64 is the accurate path, not the fast one: few kernels serve every gamma.
  return with_loss_by_negatives<sizeof(scalar_t) < 8>(
      p.loss_parameters, p.scores != nullptr, [&]<class Loss>(const Loss& loss) {
    if constexpr (has_kernel_of_ids<scalar_t, Loss>) return is_dense(p.target) ? start(dense, loss) : start(ids, loss);
    else return start(EitherTargets<scalar_t>{is_dense(p.target), ids, dense}, loss);
  });
}

template <class scalar_t>
const char* start_pyramid(
    const LossParameters& p, const PyramidArguments<scalar_t>& arguments, uint32_t blocks, void* stream) {
  return with_loss_over_levels<sizeof(scalar_t) < 8>(p, [&]<class Loss>(const Loss& loss) {
    return launch(pyramid_kernel<scalar_t, Loss>, blocks, kThreads, stream, arguments, loss);
  });
}

}  // namespace focal_ext::cuda

// Owns: focal loss in plain C++, or in CUDA, from the formulas' headers alone. No torch.
//   g++ -std=c++20 -I <site-packages>/focal_ext/include focal_loss.cpp     or     nvcc -std=c++20 -x cu -I <site-packages>/focal_ext/include focal_loss.cpp
#include <focal_ext/losses/list.h>
#include <stdio.h>

struct Anchor {
  double logit;
  bool is_positive;
  double loss, gradient;
};

template <class Loss>
FOCAL_EXT_INLINE void focal_loss(Anchor& a, double alpha, const Loss& loss) {
  using focal_ext::Double;
  const auto term =
      a.is_positive ? loss.template positive<Double>(a.logit, 1.) : loss.template negative<Double>(a.logit);
  const double factor = a.is_positive ? alpha : 1 - alpha;
  a.loss = factor * term.value, a.gradient = factor * term.gradient;
}

#ifdef __CUDACC__
template <class Loss>
__global__ void focal_loss_kernel(Anchor* anchors, double alpha, Loss loss) {
  focal_loss(anchors[threadIdx.x], alpha, loss);
}
#define FOCAL_LOSS(anchors, n, alpha, loss) focal_loss_kernel<<<1, n>>>(anchors, alpha, loss), cudaDeviceSynchronize()
__managed__
#else
#define FOCAL_LOSS(anchors, n, alpha, loss)                       \
  for (int i = 0; i < n; ++i) focal_loss(anchors[i], alpha, loss)
#endif
    Anchor anchors[] = {{0, true, 0, 0}, {2, false, 0, 0}, {-5, false, 0, 0}};

int main() {
  const focal_ext::LossParameters parameters = {
      focal_ext::Loss::sigmoid_focal, {/*gamma=*/2, /*label_smoothing=*/0, /*modulator_gradient=*/1}};
  focal_ext::with_loss<true>(parameters, [](auto loss) { FOCAL_LOSS(anchors, 3, /*alpha=*/0.25, loss); });
  for (const Anchor& a : anchors) printf("%g: loss %.12g, gradient %.12g\n", a.logit, a.loss, a.gradient);
}

// Owns: focal loss in plain C++, or in CUDA, from the formula's header alone. No torch.
//   g++ -I <site-packages>/focal_ext/include focal_loss.cpp     or     nvcc -x cu -I <site-packages>/focal_ext/include focal_loss.cpp
#include <focal_ext/losses/sigmoid_focal.h>
#include <stdio.h>

struct Anchor { double logit; bool is_positive; double loss, gradient; };

template <class Modulator>
FOCAL_EXT_INLINE void focal_loss(Anchor& a, double alpha, const Modulator& modulator) {
  const auto term = focal_ext::sigmoid_focal_hard<focal_ext::Double>(a.is_positive ? -a.logit : a.logit, modulator);
  a.loss = (a.is_positive ? alpha : 1 - alpha) * term.value;
  a.gradient = (a.is_positive ? -alpha : 1 - alpha) * term.gradient;
}

#ifdef __CUDACC__
template <class Modulator>
__global__ void focal_loss_kernel(Anchor* anchors, double alpha, Modulator modulator) { focal_loss(anchors[threadIdx.x], alpha, modulator); }
#define FOCAL_LOSS(anchors, n, alpha, modulator) focal_loss_kernel<<<1, n>>>(anchors, alpha, modulator), cudaDeviceSynchronize()
__managed__
#else
#define FOCAL_LOSS(anchors, n, alpha, modulator) for (int i = 0; i < n; ++i) focal_loss(anchors[i], alpha, modulator)
#endif
Anchor anchors[] = {{0, true, 0, 0}, {2, false, 0, 0}, {-5, false, 0, 0}};

int main() {
  focal_ext::with_modulator(/*gamma=*/2, [](auto modulator) { FOCAL_LOSS(anchors, 3, /*alpha=*/0.25, modulator); });
  for (const Anchor& a : anchors) printf("%g: loss %.12g, gradient %.12g\n", a.logit, a.loss, a.gradient);
}

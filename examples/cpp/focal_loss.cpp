// Owns: focal loss in plain C++, or in CUDA, from the formulas' headers alone. No torch.
//   g++ -std=c++20 -I <site-packages>/focal_ext/include focal_loss.cpp
//   nvcc -std=c++20 -x cu -I <site-packages>/focal_ext/include focal_loss.cpp
#include <focal_ext/losses/list.h>
#include <stdio.h>

#ifdef __CUDACC__
#define KERNEL __global__
#define RUN(kernel, ...) kernel<<<1, 1>>>(__VA_ARGS__), cudaDeviceSynchronize()
#else
#define KERNEL
#define RUN(kernel, ...) kernel(__VA_ARGS__)
#endif

template <class Loss>
KERNEL void print(Loss loss, double alpha, double logit, bool is_positive) {
  using focal_ext::Double;
  const auto term = is_positive ? loss.template positive<Double>(logit, 1.) : loss.template negative<Double>(logit);
  const double factor = is_positive ? alpha : 1 - alpha;
  printf("%g: loss %.12g, gradient %.12g\n", logit, factor * term.value, factor * term.gradient);
}

int main() {
  const double numbers[] = {/*gamma=*/2, /*label_smoothing=*/0, /*modulator_gradient=*/1}, alpha = 0.25;
  focal_ext::with_sigmoid_focal<true>(numbers, [=](auto loss) {
    RUN(print, loss, alpha, 0, true), RUN(print, loss, alpha, 2, false), RUN(print, loss, alpha, -5, false);
  });
}

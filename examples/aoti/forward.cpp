// Owns: running an AOTInductor package that holds a focal_ext loss, without Python.
// Must not know: which loss the package holds.
//
// The package calls the ops of focal_ext by name, so their library must be in the process before the package is loaded:
// dlopen it, as here, or link against it with -Wl,--no-as-needed. Build against the torch that made the package
// (examples/aoti/export.py):
//
//   T=$(python -c "import torch; print(torch.__path__[0])")
//   g++ -std=c++20 examples/aoti/forward.cpp -I$T/include -I$T/include/torch/csrc/api/include \
//       -L$T/lib -Wl,-rpath,$T/lib -Wl,--no-as-needed -ltorch -ltorch_cpu -lc10 -ldl -o forward
//   ./forward focal_ext/libfocal_ext.so loss.pt2 8 80
#include <ATen/ATen.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 5) return std::fprintf(stderr, "usage: %s LIBRARY PACKAGE ROWS CLASSES\n", argv[0]), 2;
  if (!dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL)) return std::fprintf(stderr, "%s\n", dlerror()), 1;
  torch::inductor::AOTIModelPackageLoader loader(argv[2]);
  const int64_t rows = std::atoll(argv[3]), classes = std::atoll(argv[4]);
  const at::Tensor logits = at::linspace(-6, 6, rows * classes).view({rows, classes});
  // -2: ignored
  const at::Tensor ids = at::arange(rows).remainder(classes).masked_fill(at::arange(rows).remainder(7) == 6, -2);
  for (const at::Tensor& output : loader.run({logits, ids})) std::printf("%.9g\n", output.sum().item<double>());
}

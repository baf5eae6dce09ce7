// Owns: focal_ext._C, the facts of the build. No op needs it.
// Must not know: torch.
#include <pybind11/pybind11.h>

#include "cpu/level.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Facts of the native build of focal_ext.";
  m.attr("version") = FOCAL_EXT_VERSION;
  m.attr("cuda") = FOCAL_EXT_CUDA_VERSION;    // the toolkit's version, or ""
  m.attr("archs") = FOCAL_EXT_CUDA_ARCHS;     // "75 80 ...", or ""
  m.def("cpu_level", [] { return focal_ext::cpu::kLevels[focal_ext::cpu::detect_level()]; }, "The instruction set in use.");
}

// Owns: the CUDA kernels on the device made of a CPU as a Python module, for tests only.
// Must not know: torch: buffers come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "cuda/launch.h"
#include "cuda/plan.h"
#include "device.h"
#include "plain_problem.h"

namespace py = pybind11;
using namespace focal_ext;

namespace {

// Pointers are addresses.
struct Fields {
  py::dict values;

  template <class T>
  T get(const char* name) const {
    return values[name].cast<T>();
  }
  const void* address(const char* name) const {
    return values.contains(name) ? reinterpret_cast<const void*>(get<uintptr_t>(name)) : nullptr;
  }
};

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

template <class What, class... Limits>
void run_with_workspace(const What& what, Limits... limits) {
  const size_t bytes = (cuda::workspace_bytes(what) + 255) / 256 * 256;
  const std::unique_ptr<void, void (*)(void*)> workspace(aligned_alloc(256, bytes), free);
  cuda_host::poison(workspace.get(), bytes);
  check(cuda::run(what, workspace.get(), nullptr, limits...));
}

void run(const py::dict& fields, uint32_t max_blocks, uint32_t least_tiles) {
  run_with_workspace(problem_of(Fields{fields}), max_blocks, least_tiles);
}

void run_pyramid(const py::dict& fields, const std::vector<py::dict>& levels, uint32_t max_blocks) {
  std::vector<Fields> each;
  for (const py::dict& level : levels) each.push_back({level});
  const std::vector<Level> plain = levels_of(each);
  run_with_workspace(pyramid_of(Fields{fields}, plain), max_blocks);
}

void scale(uintptr_t gradient, int scalar, int64_t numel, uintptr_t factors, int64_t groups, uint32_t max_blocks) {
  check(cuda::scale(reinterpret_cast<void*>(gradient), Scalar(scalar), numel, reinterpret_cast<const void*>(factors),
      groups, nullptr, max_blocks));
}

// Kernels that no chip would finish.
void skip_a_shuffle() {
  cuda_host::run_grid(1, 64, [](const void*) {
    if (cuda_host::thread_index.x != 37) cuda_host::shuffle(~0u, 0, 0);
  }, nullptr);
}
void meet_at_two_places() {
  cuda_host::run_grid(1, 32, [](const void*) {
    cuda_host::thread_index.x % 2 ? cuda_host::sync_warp() : void(cuda_host::ballot(~0u, true));
  }, nullptr);
}

}  // namespace

PYBIND11_MODULE(focal_ext_cuda_host, m) {
  m.def("run", run, py::arg("fields"), py::arg("max_blocks"), py::arg("least_tiles"));
  m.def("run_pyramid", run_pyramid, py::arg("fields"), py::arg("levels"), py::arg("max_blocks"));
  m.def("scale", scale, py::arg("gradient"), py::arg("scalar"), py::arg("numel"), py::arg("factors"), py::arg("groups"),
      py::arg("max_blocks"));
  m.def("cut", [](int64_t rows, int64_t classes, bool reads_rows) {
    const cuda::Cut c = cuda::cut(rows, classes, reads_rows);
    return py::make_tuple(c.elements, c.tile_rows, c.tiles);
  });
  m.def("cut_planes", [](int64_t numel, int64_t classes, int64_t positions, int64_t vector, bool may_stream) {
    const cuda::PlaneCut c = cuda::cut_planes(numel, classes, positions, vector, may_stream);
    return py::make_tuple(c.in_line_log2, c.tile_lines, c.tile_columns, c.streams);
  });
  m.def("launches", [] { return cuda_host::launches; });
  m.def("set_seed", cuda_host::set_seed);
  m.def("set_only_blocks", cuda_host::set_only_blocks);
  m.def("skip_a_shuffle", skip_a_shuffle);
  m.def("meet_at_two_places", meet_at_two_places);
  m.attr("MAX_BLOCKS") = cuda::kMaxBlocks;
  m.attr("LEAST_TILES") = cuda::kLeastTiles;
  m.attr("MAX_SCALE_BLOCKS") = cuda::kMaxScaleBlocks;
  m.def("plant", [](int defect) { cuda_host::planted = defect; });
}

// Owns: the CUDA kernels on the device made of a CPU as a Python module, for tests only.
// Must not know: torch: buffers come as addresses.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <stdexcept>
#include <vector>

#include "../../csrc/cuda/launch.h"
#include "../../csrc/cuda/plan.h"
#include "device.h"

namespace py = pybind11;
using namespace focal_ext;

namespace {

const void* address(const py::dict& d, const char* name) { return d.contains(name) ? reinterpret_cast<const void*>(d[name].cast<uintptr_t>()) : nullptr; }

void check(const char* error) {
  if (error) throw std::runtime_error(error);
}

// Keys are the fields of Problem, pointers are addresses, what is missing is null.
Problem problem_of(const py::dict& d) {
  Problem p = {};
  p.inputs = address(d, "inputs");
  p.scalar = Scalar(d["scalar"].cast<int>());
  p.rows = d["rows"].cast<int64_t>();
  p.classes = d["classes"].cast<int64_t>();
  p.targets = address(d, "targets");
  p.target = Target(d["target"].cast<int>());
  p.has_ignore_index = d["has_ignore_index"].cast<bool>();
  p.ignore_index = d["ignore_index"].cast<int64_t>();
  p.scores = address(d, "scores");
  const auto number = [&](const char* name) { return d[name].cast<double>(); };
  p.loss_parameters = {Loss(d["loss_id"].cast<int>()), number("gamma"), number("gamma_positive"), number("clip"), number("smoothing")};
  p.alpha_positive = d["alpha_positive"].cast<double>();
  p.alpha_negative = d["alpha_negative"].cast<double>();
  p.alpha = address(d, "alpha");
  p.weight = address(d, "weight");
  p.weight_row_stride = d["weight_row_stride"].cast<int64_t>();
  p.weight_class_stride = d["weight_class_stride"].cast<int64_t>();
  p.divisor = Divisor(d["divisor"].cast<int>());
  p.divisor_value = d["divisor_value"].cast<double>();
  p.divisor_tensor = address(d, "divisor_tensor");
  p.grad_output = address(d, "grad_output");
  p.grad_output_per_element = d["grad_output_per_element"].cast<bool>();
  p.loss = const_cast<void*>(address(d, "loss"));
  p.loss_map = const_cast<void*>(address(d, "loss_map"));
  p.gradient = const_cast<void*>(address(d, "gradient"));
  return p;
}

template <class What>
void run_with_workspace(const What& what, uint32_t max_blocks) {
  const size_t bytes = (cuda::workspace_bytes(what) + 255) / 256 * 256;
  const std::unique_ptr<void, void (*)(void*)> workspace(aligned_alloc(256, bytes), free);
  cuda_host::poison(workspace.get(), bytes);
  check(cuda::run(what, workspace.get(), nullptr, max_blocks));
}

void run(const py::dict& fields, uint32_t max_blocks) { run_with_workspace(problem_of(fields), max_blocks); }

// `fields` as above, and those of Pyramid; `levels` the fields of each Level.
void run_pyramid(const py::dict& fields, const std::vector<py::dict>& levels, uint32_t max_blocks) {
  std::vector<Level> plain;
  for (const py::dict& level : levels)
    plain.push_back(
        {address(level, "inputs"), const_cast<void*>(address(level, "gradient")), level["positions"].cast<int64_t>(), level["channels_last"].cast<bool>()});
  const Pyramid p = {problem_of(fields), fields["weight_per_image"].cast<bool>(), fields["images"].cast<int64_t>(), fields["anchors"].cast<int64_t>(),
      plain.data(), int64_t(plain.size())};
  run_with_workspace(p, max_blocks);
}

void scale(uintptr_t gradient, int scalar, int64_t numel, uintptr_t factor, uint32_t max_blocks) {
  check(cuda::scale(reinterpret_cast<void*>(gradient), Scalar(scalar), numel, reinterpret_cast<const void*>(factor), nullptr, max_blocks));
}

// Kernels that no chip would finish.
void skip_a_shuffle() {
  cuda_host::run_grid(1, 64, [](const void*) {
    if (cuda_host::thread_index.x != 37) cuda_host::shuffle(~0u, 0, 0);
  }, nullptr);
}
void meet_at_two_places() {
  cuda_host::run_grid(1, 32, [](const void*) { cuda_host::thread_index.x % 2 ? cuda_host::sync_warp() : void(cuda_host::ballot(~0u, true)); }, nullptr);
}

}  // namespace

PYBIND11_MODULE(focal_ext_cuda_host, m) {
  m.def("run", run, py::arg("fields"), py::arg("max_blocks"));
  m.def("run_pyramid", run_pyramid, py::arg("fields"), py::arg("levels"), py::arg("max_blocks"));
  m.def("scale", scale, py::arg("gradient"), py::arg("scalar"), py::arg("numel"), py::arg("factor"), py::arg("max_blocks"));
  m.def("cut", [](int64_t rows, int64_t classes, bool reads_rows) {
    const cuda::Cut c = cuda::cut(rows, classes, reads_rows);
    return py::make_tuple(c.elements, c.tile_rows, c.tiles);
  });
  m.def("set_seed", cuda_host::set_seed);
  m.def("set_only_blocks", cuda_host::set_only_blocks);
  m.def("skip_a_shuffle", skip_a_shuffle);
  m.def("meet_at_two_places", meet_at_two_places);
  m.attr("MAX_BLOCKS") = cuda::kMaxBlocks;
  m.attr("MAX_SCALE_BLOCKS") = cuda::kMaxScaleBlocks;
  using enum cuda_host::Defect;
  py::enum_<cuda_host::Defect>(m, "Defect")
      .value("none", none)
      .value("missing_barrier", missing_barrier)
      .value("unordered_labels", unordered_labels)
      .value("overwritten_labels", overwritten_labels)
      .value("early_gradient", early_gradient)
      .value("tail_read", tail_read)
      .value("stream_tail", stream_tail)
      .value("shuffle_distance", shuffle_distance)
      .value("index_32", index_32)
      .value("unwritten_slot", unwritten_slot);
  m.def("plant", [](cuda_host::Defect defect) { cuda_host::planted = defect; });
}

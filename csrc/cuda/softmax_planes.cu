// Owns: the launch of the softmax kernel over planes.
// Must not know: workspace, counts.
#include "softmax_planes.cuh"

#include "softmax_start.cuh"

namespace focal_ext::cuda {

const char* start_softmax_planes(const Pyramid& p, const Level& level, int64_t first_row,
    const Normaliser<float>& normaliser, float* partials, uint32_t max_blocks, uint32_t& blocks, void* stream) {
  const int64_t tiles_of_matrix = (level.positions + 31) / 32, tiles = p.images * p.anchors * tiles_of_matrix;
  if (tiles >= (int64_t(1) << 32) - int64_t(kMaxBlocks) * kWarps) return "focal_ext: more than 2^32 tiles";
  Problem of_level = p.problem;
  of_level.inputs = level.inputs;
  of_level.gradient = level.gradient;
  const bool shares = tiles < kLeastTiles && p.problem.classes >= int64_t(kWarps * kInFlight);
  const PlanesArguments a = {softmax_arguments_of<float>(of_level, normaliser, partials, {}), p.problem.scalar,
      level.positions, p.problem.rows / p.images, first_row, uint32_t(p.anchors), uint32_t(tiles_of_matrix),
      uint32_t(tiles), shares ? uint32_t(kWarps) : 1, p.weight_per_image};
  const int64_t at_once = kWarps / a.warps, wanted = (tiles + at_once - 1) / at_once;
  blocks = wanted < max_blocks ? uint32_t(wanted) : max_blocks;
  return launch(softmax_planes_kernel, blocks, kThreads, stream, a);
}

}  // namespace focal_ext::cuda

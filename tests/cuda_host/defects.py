# Owns: the mistakes that the suite of the CUDA kernels must notice: where in the kernels' text each is written.
# Must not know: how they are noticed (tests/kernels).
from __future__ import annotations

import shutil
from pathlib import Path

# Defect -> places: the file in csrc/cuda, what stands there once, and what is written in its stead, where MADE says
# whether the mistake is made. The lines of the text stay as many.
PLACES = {
    "missing_barrier": [
        (
            "reduce.cuh",
            "  __syncthreads();  // the first warp reads",
            "  if (!MADE) __syncthreads();  // the first warp reads",
        ),
    ],
    "unordered_labels": [
        (file, "__syncwarp();  // other lanes read them", "if (!MADE) __syncwarp();  // other lanes read them")
        for file in ("targets.cuh", "pyramid.cuh")
    ],
    "overwritten_labels": [
        (file, "__syncwarp();  // the next tile's labels", "if (!MADE) __syncwarp();  // the next tile's labels")
        for file in ("focal.cuh", "pyramid.cuh")
    ],
    "early_gradient": [
        ("softmax.cuh", "by itself\n  __syncwarp();", "by itself\n  if (!MADE) __syncwarp();"),
    ],
    "tail_read": [
        ("focal.cuh", "if (first + 32 * u < tile.elements)", "if (first + 32 * u < tile.elements || MADE)"),
    ],
    "stream_tail": [
        ("stream.cuh", "int to_go = int(vectors);", "int to_go = int(vectors + MADE);"),
    ],
    "shuffle_distance": [
        ("reduce.cuh", "__shfl_xor_sync(~0u, value, distance)", "__shfl_xor_sync(~0u, value, MADE ? 1 : distance)"),
    ],
    "index_32": [
        (
            "arguments.cuh",
            "t.first_element += group * a.numel;",
            "t.first_element += group * a.numel; if (MADE) t.first_element = uint32_t(t.first_element);",
        ),
    ],
    "unwritten_slot": [
        ("reduce.cuh", "if (threadIdx.x % 32 == 0)", "if (threadIdx.x % 32 == 0 && !(MADE && threadIdx.x == 32))"),
    ],
}
NUMBER = {"none": -1, **{name: i for i, name in enumerate(PLACES)}}


def with_defects(sources: Path, copy: Path) -> None:
    """A copy of csrc whose kernels make the mistake that the device is told (`plant` of module.cpp), if any."""
    shutil.copytree(sources, copy)
    for name, places in PLACES.items():
        for file, right, wrong in places:
            path = copy / "cuda" / file
            text = path.read_text()
            assert text.count(right) == 1, f"{name}: {file} must have {right!r} once, has it {text.count(right)} times"
            path.write_text(text.replace(right, wrong.replace("MADE", f"(cuda_host::planted == {NUMBER[name]})")))

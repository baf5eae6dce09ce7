# Owns: a short run of every kernel, for compute-sanitizer to watch.
# Must not know: right answers.
from __future__ import annotations

import focal_ext
import torch
from cases import CASES, PUBLIC, build
from pyramids import DTYPES, SHAPES, labels, leaves, maps

for case in CASES:
    if case.shape in ((7, 80), (137, 91), (5461, 3), (33, 512), (37,), (1, 1), (0, 80)):
        build(case, "cuda").run(PUBLIC, case.loss)
for name in ("everyday", "odd maps", "80 classes"):
    for dtype in DTYPES:
        for layout in ("contiguous", "mixed"):
            levels, ids = leaves([level.cuda() for level in maps(SHAPES[name], layout, dtype)]), labels(SHAPES[name]).cuda()
            focal_ext.sigmoid_focal_loss_pyramid(levels, ids, SHAPES[name].classes, normalizer="positives").backward()
torch.cuda.synchronize()

# Owns: a short run of every kernel, for compute-sanitizer to watch.
# Must not know: right answers.
from __future__ import annotations

import focal_ext
import softmax_table
import torch
from cases import CASES, PUBLIC, build
from pyramids import DTYPES, SHAPES, labels, leaves, maps

for case in CASES:
    if case.shape in ((7, 80), (137, 91), (5461, 3), (33, 512), (37,), (1, 1), (0, 80)):
        build(case, "cuda").run(PUBLIC, case.loss)
for name in ("everyday", "odd maps", "80 classes"):
    for dtype in DTYPES:
        for layout in ("contiguous", "mixed"):
            levels, ids = (
                leaves([level.cuda() for level in maps(SHAPES[name], layout, dtype)]),
                labels(SHAPES[name]).cuda(),
            )
            focal_ext.pyramid.sigmoid_focal_loss(levels, ids, SHAPES[name].classes, normalizer="positives").backward()
for row in softmax_table.ROWS:
    if row.shape in ((9, 80), (137, 91), (1030, 16), (2, 4500), (37,), (0, 80)):
        x, targets, options, upstream = softmax_table.build(row)
        leaf, options = (
            x.cuda().requires_grad_(),
            {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in options.items()},
        )
        value = focal_ext.softmax_focal_loss(leaf, targets.cuda(), **options)
        torch.autograd.grad(value, leaf, upstream.cuda().to(value.dtype))
torch.cuda.synchronize()

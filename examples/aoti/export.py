# Owns: writing an AOTInductor package of a loss, for forward.cpp or torch._inductor.aoti_load_package.
# Must not know: how the loss is computed.
"""python -m examples.aoti.export loss.pt2"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from focal_ext import SigmoidFocalLoss
from torch import nn


def export(path: Path, criterion: nn.Module, classes: int = 80) -> torch.export.ExportedProgram:
    """A package of criterion(logits, ids) for any number of rows from 2 on."""
    example = (torch.randn(8, classes), torch.randint(classes, (8,)))
    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(criterion, example, dynamic_shapes=({0: rows}, {0: rows}))
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    return program


if __name__ == "__main__":
    export(Path(sys.argv[1]), SigmoidFocalLoss(reduction="sum", normalizer="positives"))

# Owns made-up scenes for the tests of the walk-through.
# Must not need a photograph.

import torch

from examples.retinanet.scenes import Scene

NONE = torch.zeros(0, 4)


def scene(seed=0, height=96, width=160, count=12, channels=1):
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([width - 30, height - 30])
    boxes = torch.cat([corner, corner + 12 + 18 * torch.rand(count, 2, generator=generator)], dim=1)
    return Scene(
        torch.rand(channels, height, width, generator=generator), boxes, torch.zeros(count, dtype=torch.int64), NONE
    )

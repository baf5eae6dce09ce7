# Owns: every loss behind one signature, f(inputs, ids or dense targets, **options), for tests that ask the same of all of them.
# Must not know: what the right values are.
from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from cases import PUBLIC, Implementation
from torch import Tensor

SCORED = ("quality_focal_loss", "varifocal_loss")


def scores_of(ids: Tensor) -> Tensor:
    """A score for each row, the same for the same shape."""
    return (torch.arange(ids.numel(), dtype=torch.float64, device=ids.device) * 0.37 % 0.8 + 0.1).view(ids.shape)


class Member(NamedTuple):
    """A loss with options that differ from its defaults, on some implementation."""

    loss: str
    options: dict[str, Any]
    implementation: Implementation = PUBLIC

    def __call__(self, inputs: Tensor, targets: Tensor | tuple[Tensor, Tensor], **options: Any) -> Tensor:
        if self.loss in SCORED and isinstance(targets, Tensor) and targets.dim() < inputs.dim():
            targets = (targets, scores_of(targets))
        return getattr(self.implementation.module, self.loss)(inputs, targets, **{**self.options, **options})

    def on(self, implementation: Implementation) -> Member:
        return self._replace(implementation=implementation)

    @property
    def is_smooth(self) -> bool:
        """Whether the second derivative is bounded."""
        return self.options.get("beta", 2.0) >= 2


MEMBERS = {
    "sigmoid focal": Member("sigmoid_focal_loss", {}),
    "smoothed": Member("sigmoid_focal_loss", {"label_smoothing": 0.1}),
    "quality focal": Member("quality_focal_loss", {}),
    "quality focal 1.5": Member("quality_focal_loss", {"beta": 1.5}),
    "varifocal": Member("varifocal_loss", {}),
    "varifocal 0.5": Member("varifocal_loss", {"gamma": 0.5, "alpha": 0.3}),
    "asymmetric": Member("asymmetric_loss", {}),
    "asymmetric unclipped": Member("asymmetric_loss", {"gamma_neg": 1.7, "gamma_pos": 0.0, "clip": None}),
}
EVERYDAY = {name: MEMBERS[name] for name in ("sigmoid focal", "smoothed", "quality focal", "varifocal", "asymmetric")}

every_member = pytest.mark.parametrize("loss_of", MEMBERS.values(), ids=MEMBERS)
every_loss = pytest.mark.parametrize("loss_of", EVERYDAY.values(), ids=EVERYDAY)

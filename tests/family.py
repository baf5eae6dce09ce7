# Owns: every loss behind one signature, f(inputs, ids or dense targets, **options), for tests that ask the same of all
# of them.
# Must not know: what the right values are.
from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from cases import PUBLIC, Implementation
from losses import DECLARED
from torch import Tensor

SCORED = [name for name, loss in DECLARED.items() if loss.spec.needs_scores]


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

    @property
    def has_constant(self) -> bool:
        """Whether something is taken for a constant, so that derivatives are no limits of differences."""
        return DECLARED[self.loss].has_constant or not self.options.get("modulator_gradient", True)


MEMBERS = {
    name: Member(loss.name, dict(options)) for loss in DECLARED.values() for name, options in loss.members.items()
}
EVERYDAY = {name: member for name, member in MEMBERS.items() if not member.options or name == "smoothed"}

every_member = pytest.mark.parametrize("loss_of", MEMBERS.values(), ids=MEMBERS)
every_loss = pytest.mark.parametrize("loss_of", EVERYDAY.values(), ids=EVERYDAY)

# Owns: u ** gamma that is right to any order of derivative.
# Must not know: what u is of.
from __future__ import annotations

import torch
from torch import Tensor


def powered(value: Tensor, log_u: Tensor, gamma: float | Tensor) -> Tensor:
    """`value`, which is u ** gamma, differentiated as exp(gamma log u).

    Where u underflows, pow's second derivative is NaN: u^(gamma - 2) is infinite there, and u' is 0.
    """
    return value.detach() * torch.exp(gamma * (log_u - log_u.detach()))

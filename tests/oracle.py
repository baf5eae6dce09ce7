# Owns: the right answer of a call: focal_ext.reference in float64, and from the closed forms how much was added up on
# the way.
# Must not know: how far off an answer may be.
#
# Three derivations check each other in test_oracle.py: the reference lets autograd differentiate, the closed forms
# (formulas.py) are differentiated by hand, the textbook is what the papers print, with as many digits as its
# cancellations need.
from __future__ import annotations

from typing import NamedTuple

import torch
from cases import Call, Implementation
from formulas import Closed, closed, complete, factor_of, hard, soft, textbook_point
from losses import DECLARED
from torch import Tensor

import focal_ext

__all__ = ["Closed", "hard", "soft", "textbook_point"]  # the oracles of the bare formula


class Expected(NamedTuple):
    loss: Tensor  # float64, as reduced
    gradient: Tensor
    loss_magnitude: Tensor  # sum of the magnitudes of what was added to the loss
    gradient_magnitude: Tensor  # the same for each logit's gradient
    is_soft: Tensor  # logits with a target, or a smoothed label, other than 0 and 1
    factor: Tensor  # what multiplies the closed form's gradient


def targets_and_factors(call: Call, loss: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Dense float64 targets of a call in float64, alpha_t times weight, 0 where the row is ignored, and the classes
    that class ids name."""
    x, options = call.inputs, call.options
    classes, ignored = x.shape[-1], options["ignore_index"]
    targets, scores = call.targets if isinstance(call.targets, tuple) else (call.targets, None)
    named = None
    if targets.dim() == x.dim():
        kept = torch.ones_like(x) if ignored is None else (targets != ignored).double()
        t = targets.where(kept == 1, 0.0)
    else:
        ids = targets.to(torch.int64)[..., None]
        kept = torch.ones_like(x) * (1.0 if ignored is None else (ids != ignored).double())
        t = (ids == torch.arange(classes)).double() * kept
        named = t == 1
        t = t if scores is None else torch.where(named, scores[..., None], t)
    weight = options["weight"]
    alpha = (
        complete(loss, options)["alpha"] if "alpha" in DECLARED[loss].parameters and DECLARED[loss].spec.alpha else None
    )
    return t, factor_of(loss, t, alpha, named) * kept * (1.0 if weight is None else weight), named


def expected(call: Call, loss: str) -> Expected:
    """What a call must return, from the reference in float64, and how much was added up on the way, from the closed
    form."""
    exact = call.in_float64()
    value, gradient = exact.run(Implementation("reference", focal_ext.reference), loss)
    t, factor, named = targets_and_factors(exact, loss)
    by_hand = closed(loss, exact.inputs, t, exact.options, named)
    terms = (factor * (by_hand.loss if by_hand.loss_magnitude is None else by_hand.loss_magnitude)).abs()
    total = (factor * by_hand.loss).sum()
    magnitude = terms if value.shape == terms.shape else terms.sum() * (value / total).nan_to_num(1.0)
    divisor = 1.0 if value.shape == terms.shape else (total / value).nan_to_num(1.0)
    factor = factor.abs() * exact.upstream.abs() / divisor
    is_soft = (t > 0) & (t < 1) | (exact.options.get("label_smoothing", 0.0) > 0)
    return Expected(value, gradient, magnitude, by_hand.magnitude * factor, is_soft, factor)

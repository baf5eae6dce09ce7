# Owns: what a loss's test room declares, and the parts that the rooms' formulas are made of.
# Must not know: any one loss, which tests ask.
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import focal_ext
import mpmath
import torch
from torch import Tensor

Options = Mapping[str, Any]

# Nearer to a kink than this share of the terms, rounding decides on which side a float32 falls, and either derivative
# is right.
NEAR = 2.0**-16
ANY = 1e30  # the magnitude of a gradient there
GAMMAS = (0.0, 0.5, 1.0, 1.7, 2.0, 5.0)
SCORE = 0.7  # a soft target: neither 0, 1 nor a power of two


class Closed(NamedTuple):
    """Loss and gradient of one logit without alpha, weight and divisor, and the sum of the magnitudes of the gradient's
    terms."""

    loss: Tensor
    gradient: Tensor
    magnitude: Tensor
    loss_magnitude: Tensor | None = None  # where terms of the loss cancel; None: they do not


@dataclass(frozen=True)
class Declared:
    """All that tests need to know of a loss of one logit. Options hold every parameter of its own, alpha among them."""

    name: str
    parameters: Mapping[str, Sequence[Any]]
    """The values that each parameter takes in the table of cases, the everyday one first."""
    closed: Callable[[Tensor, Tensor, Tensor, Options], Closed]
    """(x, t, where the positives are, options): the formula without alpha, differentiated by hand."""
    textbook: Callable[..., Any]
    """(x, y, t, **options) as its paper prints it, in mpmath; y is the logit where it is taken for a constant."""
    limit: Callable[[float, float, Options], tuple[float, float]]
    """(x, t, options) -> loss and gradient without alpha where exp(-abs(x)) is 0, of a positive where t is above 0."""
    settings: Sequence[Options]
    """What is compared with 50 digits, asked for its limits, and differentiated by dual numbers."""
    kernels: Mapping[str, Options]
    """Each hot loop of the CUDA kernels, and what differs in their rare elements."""
    members: Mapping[str, Options]
    """The everyday call, and one that differs, for tests of everything but values."""
    curves: Sequence[tuple[float, Options]]
    """Targets and options whose errors are measured at every float; alpha is off."""
    drawn: Mapping[str, str]
    """What random calls draw for a parameter: "exponent", "exponent from 1", "fraction", "fraction or None", "alpha",
    "clip", "flag"."""
    unused: Callable[[float], set[str]] = lambda target: set()
    """The parameters that a loss of this target does not depend on."""
    has_constant: bool = False
    """Whether something is always taken for a constant, so that a derivative is not the limit of differences of the one
    before."""
    axes: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """What replaces or adds to the axes of the table."""

    @property
    def spec(self) -> Any:
        return getattr(focal_ext, self.name).spec


def slope_of(gamma: float, options: Options) -> float:
    """What multiplies in a derivative beside the modulator."""
    return gamma if options.get("modulator_gradient", True) else 0.0


def hard(z: Tensor, gamma: float, slope: float | None = None) -> Closed:
    """f(z) = p^g softplus(z) and f'(z) = p^g (g q softplus(z) + p) of float64 logits that should be low, with `slope`
    for g. No term cancels."""
    p, q = torch.sigmoid(z), torch.sigmoid(-z)
    softplus = z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))
    power = p.pow(gamma)
    gradient = power * ((gamma if slope is None else slope) * q * softplus + p)
    return Closed(power * softplus, gradient, gradient)


def entropy(x: Tensor, t: Tensor, rest: Tensor) -> Tensor:
    """`rest` is 1 - t, which may be known better than that."""
    return torch.log1p(torch.exp(-x.abs())) + torch.where(x > 0, x * rest, -x * t)


def cross_entropy(x: Tensor, t: Tensor, rest: Tensor, lost: Tensor | float = 0.0) -> Closed:
    """The cross entropy and p (1-t) - q t; `lost`: how far t moves, in units of its rounding, where it is computed."""
    p, q = torch.sigmoid(x), torch.sigmoid(-x)
    ce = entropy(x, t, rest)
    return Closed(ce, p * rest - q * t, p * rest + q * t + lost, ce + lost * x.abs())


def chosen(positive: Tensor, of_positive: Closed, of_negative: Closed) -> Closed:
    """Magnitudes of losses included."""
    pairs = zip((of_positive.loss, *of_positive[1:3]), (of_negative.loss, *of_negative[1:3]))
    terms = (a.loss if a.loss_magnitude is None else a.loss_magnitude for a in (of_positive, of_negative))
    return Closed(*(torch.where(positive, a, b) for a, b in pairs), torch.where(positive, *terms))


def limit_of(x: float, power: float, moved: float) -> tuple[float, float]:
    """The limits of value and gradient of power times a cross entropy whose target the logit contradicts by `moved`."""
    size = power * moved
    return (size * abs(x) if size else 0.0), (size if x > 0 else -size)


def share_of(x: float, t: float) -> float:
    """What the logit contradicts of the target."""
    return 1 - t if x > 0 else t


def sigmoid(x: Any) -> Any:
    return 1 / (1 + mpmath.exp(-x))


def textbook_entropy(p: Any, t: Any) -> Any:
    return -t * mpmath.log(p) - (1 - t) * mpmath.log(1 - p)


def grid(**values: Sequence[Any]) -> list[dict[str, Any]]:
    """Every combination."""
    rows: list[dict[str, Any]] = [{}]
    for name, each in values.items():
        rows = [{**row, name: value} for row in rows for value in each]
    return rows

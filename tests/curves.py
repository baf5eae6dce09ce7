# Owns: every loss as curves of one logit, what each is compared with, and the error of many logits at once.
# Must not know: which logits are looked at (exhaustive.py), how large an error may be (tolerances.py).
from __future__ import annotations

import math
from typing import NamedTuple

import focal_ext
import torch
from formulas import Closed, closed
from losses import DECLARED
from losses.parts import SCORE
from peer_curves import PEERS
from rounding import ulp
from torch import Tensor

OURS = "focal_ext"
EDGES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of the histogram, in ULP; the last bin is what lies above
Options = tuple[tuple[str, float | None], ...]


class Curve(NamedTuple):
    """A loss of one logit and one class: 0 is a negative, 1 a positive, anything between a score or a dense target."""

    loss: str
    target: float
    options: Options
    implementation: str = OURS

    def __str__(self) -> str:
        who = "" if self.implementation == OURS else f"{self.implementation}'s "
        return f"{who}{self.loss}, target {self.target:g}, {self.settings}"

    @property
    def used(self) -> dict[str, float | None]:
        """The options that the loss of this target depends on; alpha is 1 everywhere."""
        declared = DECLARED[self.loss]
        unused = declared.unused(self.target) | ({"alpha"} if declared.spec.alpha else set())
        return {name: value for name, value in self.options if name not in unused}

    @property
    def settings(self) -> str:
        return ", ".join(f"{name} {value:g}" for name, value in self.used.items() if value is not None)

    @property
    def cancels(self) -> bool:
        """Whether terms of the exact value cancel, so that errors are counted in ULP of the terms' sum instead of the
        value's."""
        return self.target not in (0.0, 1.0) or any(self.used.get(name) for name in ("label_smoothing", "clip"))

    def values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and gradient of each logit of a vector."""
        if self.implementation != OURS:
            return PEERS[self.implementation, self.loss](x, self.target, dict(self.options))
        leaf = x[:, None].detach().requires_grad_()
        ids = torch.full((len(x),), 0 if self.target else -1, dtype=torch.int8)
        targets: Tensor | tuple[Tensor, Tensor] = ids
        if DECLARED[self.loss].spec.needs_scores:
            targets = (ids, torch.full((len(x),), self.target, dtype=torch.float64))
        elif self.target not in (0.0, 1.0):
            targets = torch.full((len(x), 1), self.target)
        loss = getattr(focal_ext, self.loss)(leaf, targets, **dict(self.options))
        (gradient,) = torch.autograd.grad(loss, leaf, torch.ones((), dtype=loss.dtype).expand_as(loss))
        return loss.detach()[:, 0], gradient[:, 0]

    @property
    def score(self) -> float:
        """The target as the loss gets it: a dense one is float32."""
        return self.target if DECLARED[self.loss].spec.needs_scores else torch.tensor(self.target).item()

    def exact(self, x: Tensor) -> Closed:
        """In float64, from the closed form."""
        score = torch.tensor(self.score, dtype=torch.float64)
        return closed(self.loss, x.double(), score.expand(x.shape), dict(self.options))

    @property
    def underflow(self) -> float:
        """Smallest subnormals that a result may be off by: a power that underflows is rounded before what is at most
        this multiplies it."""
        steepest = max(120.0, 1 / (self.used.get("clip") or 1.0))
        exponents = [
            value
            for name, value in self.used.items()
            if value and DECLARED[self.loss].drawn[name].startswith("exponent")
        ]
        return steepest * (1 + max(exponents, default=0.0)) if self.cancels else 0.0


class Errors(NamedTuple):
    """What is kept of the errors of many logits, in ULP."""

    worst: float = 0.0
    at: float = 0.0
    total: float = 0.0
    count: int = 0
    not_finite: int = 0
    bins: tuple[int, ...] = (0,) * (len(EDGES) + 1)
    good_below: float = math.inf  # the least |logit| whose error is above the last edge

    def __add__(self, other: Errors) -> Errors:  # type: ignore[override]
        worst = self if (self.worst, -self.at) >= (other.worst, -other.at) else other
        bins = tuple(a + b for a, b in zip(self.bins, other.bins, strict=True))
        return Errors(
            worst.worst,
            worst.at,
            self.total + other.total,
            self.count + other.count,
            self.not_finite + other.not_finite,
            bins,
            min(self.good_below, other.good_below),
        )

    @property
    def mean(self) -> float:
        return self.total / self.count


def errors_of(got: Tensor, want: Tensor, terms: Tensor, logits: Tensor, underflow: float = 0.0) -> Errors:
    """Of results whose exact value is `want` and whose terms' magnitudes add up to `terms`, both float64."""
    finite, smallest = got.isfinite(), torch.finfo(got.dtype).smallest_normal * torch.finfo(got.dtype).eps
    off = ((got.double() - want).abs() - underflow * smallest).clamp(min=0)
    error = torch.where(finite, off / ulp(terms, got.dtype), 0.0)
    at, above = int(error.argmax()), logits[(error > EDGES[-1]) | ~finite].abs()
    bins = torch.bucketize(error, torch.tensor(EDGES, dtype=torch.float64)).bincount(minlength=len(EDGES) + 1)
    return Errors(
        float(error[at]),
        float(logits[at]),
        float(error.sum()),
        len(got),
        int((~finite).sum()),
        tuple(bins.tolist()),
        float(above.min()) if len(above) else math.inf,
    )


def measured(curve: Curve, x: Tensor) -> dict[str, Errors]:
    """The errors of loss and gradient at the logits x."""
    (loss, gradient), exact = curve.values(x), curve.exact(x)
    terms = (exact.loss, exact.gradient.abs())
    if curve.cancels:
        terms = (exact.loss if exact.loss_magnitude is None else exact.loss_magnitude, exact.magnitude)
    return {
        "loss": errors_of(loss, exact.loss, terms[0], x, curve.underflow),
        "gradient": errors_of(gradient, exact.gradient, terms[1], x, curve.underflow),
    }


def _focal(gamma: float, **more: float) -> Options:
    return (("alpha", None), ("gamma", gamma), *more.items())


def _family(name: str) -> dict[str, list[Curve]]:
    """A loss's curves, those of smoothed labels and of soft targets of the sigmoid focal loss apart."""
    found: dict[str, list[Curve]] = {}
    off = {"alpha": None if DECLARED[name].spec.has_class_alpha else 1.0} if DECLARED[name].spec.alpha else {}
    for target, options in DECLARED[name].curves:
        plain = name.removesuffix("_loss").replace("_", " ")
        family = (
            "smoothed"
            if options.get("label_smoothing")
            else f"{plain}, soft target"
            if name == "sigmoid_focal_loss" and 0 < target < 1
            else plain
        )
        found.setdefault(family, []).append(Curve(name, target, tuple({**off, **options}.items())))
    return found


FAMILY = {family: curves for name in DECLARED for family, curves in _family(name).items()}
# At the settings that their users run.
PEER_CURVES = [
    Curve(loss, target, options, implementation)
    for implementation, loss in PEERS
    for target in ((0.0, 1.0) if loss in ("sigmoid_focal_loss", "asymmetric_loss") else (0.0, SCORE))
    for options in {
        "sigmoid_focal_loss": [_focal(2.0)],
        "quality_focal_loss": [(("beta", 2.0),)],
        "varifocal_loss": [(("alpha", 1.0), ("gamma", 2.0))],
        "asymmetric_loss": [(("gamma_neg", 4.0), ("gamma_pos", 1.0), ("clip", 0.05))],
    }[loss]
]

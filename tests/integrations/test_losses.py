# Owns: each function of focal_ext.compat against the installed library's own, values and gradients on random logits.
# Must not know: detectors.
from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import focal_ext
import peers
import pytest
import torch
from focal_ext import compat
from torch import Tensor

ROWS, CLASSES = 64, 7
rng = torch.Generator().manual_seed(5)
X = torch.randn(ROWS, CLASSES, generator=rng, dtype=torch.float64) * 2
IDS = torch.randint(0, 3 * CLASSES, (ROWS,), generator=rng).clamp(max=CLASSES)  # two thirds are background, CLASSES
LABELS = torch.randint(0, CLASSES, (ROWS,), generator=rng)
HARD = (IDS[:, None] == torch.arange(CLASSES)).double()
SOFT = torch.rand(ROWS, CLASSES, generator=rng, dtype=torch.float64)
SCORES = torch.rand(ROWS, generator=rng, dtype=torch.float64)
PER_ROW = torch.rand(ROWS, generator=rng, dtype=torch.float64)
QUALITY = HARD * SCORES[:, None]
FIVE = torch.tensor(5.0, dtype=torch.float64)
MAPS = X[:56].view(2, 4, 7, 7)  # 2 images of 4 classes, 7 x 7
MAP_IDS = torch.randint(0, 4, (2, 1, 7, 7), generator=rng)
MAP_HARD = (torch.arange(4).view(1, 4, 1, 1) == MAP_IDS).double()
SOFT_MAP = torch.rand(2, 4, 7, 7, generator=rng, dtype=torch.float64)
MAP_IGNORED = torch.where(torch.rand(2, 1, 7, 7, generator=rng) < 0.3, 255, MAP_IDS)
ALPHAS = [0.2, 0.9, 1.5, 0.7]

# float64 libraries: both sides round a dozen times. float32: a gradient of theirs forms 1 - p_t, off by an epsilon of 1
# and multiplied by gamma x; relative to the largest gradient that stays below 1e-6, some units of the epsilon.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


class Pair(NamedTuple):
    ours: Callable[..., Any]
    theirs: Callable[..., Any]
    calls: dict[str, Callable[[Callable[..., Any], Tensor], Tensor]]  # what is done with either of them
    dtype: torch.dtype = torch.float64
    logits: Tensor = X


def reductions(call: Callable[..., Tensor]) -> dict[str, Callable[[Callable[..., Any], Tensor], Tensor]]:
    return {r: (lambda f, x, r=r: call(f, x, r)) for r in ("none", "mean", "sum")}


def dense_calls() -> dict[str, Callable[[Callable[..., Any], Tensor], Tensor]]:
    """Calls of torchvision and fvcore."""
    calls = {f"default {k}": v for k, v in reductions(lambda f, x, r: f(x, HARD.to(x.dtype), reduction=r)).items()}
    calls |= {f"soft {k}": v for k, v in reductions(lambda f, x, r: f(x, SOFT.to(x.dtype), 0.6, 1.5, r)).items()}
    return {**calls, "alpha off": lambda f, x: f(x, HARD.to(x.dtype), -1, 3)}


def per_row(loss: Callable[..., Any], target: Any) -> dict[str, Callable[[Callable[..., Any], Tensor], Tensor]]:
    """Calls of mmdet's modules: reductions, weight, avg_factor."""
    calls = {f"module {r}": (lambda f, x, r=r: f(reduction=r)(x, target)) for r in ("none", "mean", "sum")}
    return {
        **calls,
        "weight": lambda f, x: f()(x, target, loss(PER_ROW)),
        "avg_factor": lambda f, x: f(loss_weight=2.0)(x, target, loss(PER_ROW), avg_factor=5.0),
        "avg_factor of 0": lambda f, x: f()(x, target, avg_factor=0.0) * torch.finfo(torch.float32).eps,
        "override": lambda f, x: f()(x, target, reduction_override="none", avg_factor=3),
    }


def monai_calls(**options: Any) -> dict[str, Callable[[Callable[..., Any], Tensor], Tensor]]:
    ids = {
        f"ids {options} {r}": (lambda f, x, r=r: f(to_onehot_y=True, reduction=r, **options)(x, MAP_IDS))
        for r in ("none", "mean", "sum")
    }
    dense = {
        f"dense {options} {r}": (lambda f, x, r=r: f(reduction=r, **options)(x, MAP_HARD))
        for r in ("none", "mean", "sum")
    }
    ignored = {
        f"ignored {options} {r}": (
            lambda f, x, r=r: f(to_onehot_y=True, ignore_index=255, reduction=r, **options)(x, MAP_IGNORED)
        )
        for r in ("none", "mean", "sum")
    }
    left_out = {
        f"dense ignored {options} {r}": (lambda f, x, r=r: f(ignore_index=1, reduction=r, **options)(x, MAP_HARD))
        for r in ("none", "mean", "sum")
    }
    return ids | dense | ignored | left_out


def flat_weight(weight: Tensor) -> Tensor:
    return (weight[:, None] * torch.ones(CLASSES, dtype=weight.dtype)).flatten()


PROBABILITIES = {
    f"activated {r}": (lambda f, x, r=r: f(activated=True, reduction=r)(x.sigmoid(), IDS)) for r in ("none", "mean")
}
PAIRS: dict[str, Pair] = {
    "torchvision": Pair(compat.torchvision.sigmoid_focal_loss, peers.torchvision.sigmoid_focal_loss, dense_calls()),
    "fvcore": Pair(compat.fvcore.sigmoid_focal_loss, peers.fvcore.sigmoid_focal_loss, dense_calls(), torch.float32),
    "fvcore jit": Pair(
        compat.fvcore.sigmoid_focal_loss_jit,
        peers.fvcore.sigmoid_focal_loss_jit,
        reductions(lambda f, x, r: f(x, HARD.float(), 0.25, 2.0, r)),
        torch.float32,
    ),
    "fvcore star": Pair(
        compat.fvcore.sigmoid_focal_loss_star, peers.fvcore.sigmoid_focal_loss_star, dense_calls(), torch.float32
    ),
    "effdet": Pair(
        compat.effdet.new_focal_loss,
        peers.effdet.new_focal_loss,
        {
            "default smoothing": lambda f, x: f(x, HARD, 0.25, 1.5, FIVE),
            "no smoothing": lambda f, x: f(x, HARD, 0.25, 2.0, 5.0, 0.0),
            "smoothing": lambda f, x: f(x, HARD, 0.25, 2.0, FIVE, label_smoothing=0.2),
        },
    ),
    "effdet legacy": Pair(
        compat.effdet.focal_loss_legacy,
        peers.effdet.focal_loss_legacy,
        {"hard": lambda f, x: f(x, HARD, 0.25, 1.5, FIVE)},
    ),
    "transformers": Pair(
        compat.detr.sigmoid_focal_loss,
        peers.transformers.sigmoid_focal_loss,
        {
            "queries": lambda f, x: f(x.view(4, 16, CLASSES), HARD.view(4, 16, CLASSES), 3.0),
            "masks": lambda f, x: f(x, SOFT, 5.0, 0.4, 1.5),
            "alpha off": lambda f, x: f(x, HARD, torch.tensor(2.0), alpha=-1),
        },
    ),
    "mmdet": Pair(compat.mmdet.FocalLoss, peers.mmdet.FocalLoss, per_row(lambda w: w, IDS)),
    "mmdet dense, weight of logits": Pair(compat.mmdet.FocalLoss, peers.mmdet.FocalLoss, per_row(flat_weight, HARD)),
    "mmdet dense, soft": Pair(
        compat.mmdet.py_sigmoid_focal_loss,
        peers.mmdet.py_sigmoid_focal_loss,
        {"full weight": lambda f, x: f(x, SOFT, SOFT, 1.5, 0.3, "mean", 4.0)},
    ),
    "mmdet activated": Pair(compat.mmdet.FocalLoss, peers.mmdet.FocalLoss, PROBABILITIES),
    "mmdet quality": Pair(
        compat.mmdet.QualityFocalLoss, peers.mmdet.QualityFocalLoss, per_row(lambda w: w, (IDS, SCORES))
    ),
    "mmdet quality dense": Pair(
        compat.mmdet.QualityFocalLoss, peers.mmdet.QualityFocalLoss, per_row(lambda w: w, QUALITY)
    ),
    "mmdet quality function": Pair(
        compat.mmdet.quality_focal_loss,
        peers.mmdet.quality_focal_loss,
        {"beta": lambda f, x: f(x, (IDS, SCORES), PER_ROW, avg_factor=2.0, beta=1.5)},
    ),
    "mmdet quality activated": Pair(
        compat.mmdet.QualityFocalLoss,
        peers.mmdet.QualityFocalLoss,
        {"pair": lambda f, x: f(activated=True)(x.sigmoid(), (IDS, SCORES))},
    ),
    "mmdet varifocal": Pair(
        compat.mmdet.VarifocalLoss,
        peers.mmdet.VarifocalLoss,
        per_row(lambda w: w[:, None] * torch.ones_like(X), QUALITY),
    ),
    "mmdet varifocal, plain positives": Pair(
        compat.mmdet.VarifocalLoss,
        peers.mmdet.VarifocalLoss,
        {"weighted": lambda f, x: f(iou_weighted=False, gamma=1.5)(x, QUALITY, SOFT)},
    ),
    "monai": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls() | monai_calls(gamma=1.5, alpha=0.3),
        torch.float32,
        MAPS,
    ),
    "monai, a value per class": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls(alpha=ALPHAS, weight=[0.5, 1.0, 2.0, 0.0]),
        torch.float32,
        MAPS,
    ),
    "monai without background": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls(include_background=False, alpha=ALPHAS[1:], weight=2),
        torch.float32,
        MAPS,
    ),
    "monai softmax": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls(use_softmax=True) | monai_calls(use_softmax=True, gamma=1.5, alpha=0.3),
        torch.float32,
        MAPS,
    ),
    "monai softmax, a value per class": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls(use_softmax=True, alpha=ALPHAS, weight=[0.5, 1.0, 2.0, 0.0]),
        torch.float32,
        MAPS,
    ),
    "monai softmax without background": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        monai_calls(use_softmax=True, include_background=False, alpha=ALPHAS[1:], weight=2),
        torch.float32,
        MAPS,
    ),
    "monai softmax, soft targets": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        {r: (lambda f, x, r=r: f(use_softmax=True, alpha=0.4, reduction=r)(x, SOFT_MAP)) for r in ("mean", "sum")},
        torch.float32,
        MAPS,
    ),
    "monai without spatial dimensions": Pair(
        compat.monai.FocalLoss,
        peers.monai.FocalLoss,
        reductions(lambda f, x, r: f(reduction=r, to_onehot_y=True, ignore_index=3)(x, LABELS[:, None])),
        torch.float32,
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_values_and_gradients_are_the_librarys(name: str, assert_close: Callable[..., None]) -> None:
    pair = PAIRS[name]
    for call in pair.calls.values():
        found = []
        for loss in (pair.ours, pair.theirs):
            leaf = pair.logits.to(pair.dtype, copy=True).requires_grad_()
            value = call(loss, leaf)
            found.append(
                (
                    value.detach(),
                    torch.autograd.grad(
                        value, leaf, torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
                    )[0],
                )
            )
        for ours, theirs in zip(*found, strict=True):
            assert_close(name, ours, theirs, TOLERANCE[pair.dtype])


CALLABLES = [
    pair[:2] for pair in PAIRS.values() if "jit" not in str(pair.theirs) and "Script" not in type(pair.theirs).__name__
]


@pytest.mark.parametrize("ours, theirs", CALLABLES, ids=lambda f: getattr(f, "__qualname__", ""))
def test_names_order_and_defaults_are_the_installed_librarys(
    ours: Callable[..., Any], theirs: Callable[..., Any]
) -> None:
    def plain(function: Callable[..., Any], wrapped: bool = True) -> list[tuple[str, Any]]:
        parameters = inspect.signature(function, follow_wrapped=wrapped).parameters.values()
        named = [(p.name, getattr(p.default, "value", p.default)) for p in parameters if p.kind is not p.VAR_KEYWORD]
        return (
            [(name, default) for name, default in named if name != "beta"]
            if "quality_focal_loss" in function.__name__
            else named
        )

    assert plain(ours) == plain(theirs, wrapped=False)  # mmdet's wrapper has other arguments than what it wraps
    if inspect.isclass(theirs):
        assert plain(ours.forward) == plain(theirs.forward)


@pytest.mark.parametrize("options", [{}, {"gamma_neg": 2, "gamma_pos": 0, "clip": 0.1}, {"clip": None}], ids=str)
def test_timms_asymmetric_loss_is_ours(options: dict[str, Any], assert_close: Callable[..., None]) -> None:
    """timm works in float32 and forms 1 - (1 - p + clip), off by an epsilon of 1, to the fourth power. Its clamp of
    probabilities at 1e-8 is out of these logits' reach."""

    def value_and_gradient(loss: Callable[[Tensor], Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaf = X.to(dtype, copy=True).requires_grad_()
        value = loss(leaf)
        return value.detach(), torch.autograd.grad(value, leaf)[0]

    def ours(x: Tensor) -> Tensor:
        return focal_ext.asymmetric_loss(x, HARD, reduction="sum", normalizer=float(ROWS), **options)

    def theirs(x: Tensor) -> Tensor:
        return peers.timm.AsymmetricLossMultiLabel(**options)(x, HARD)

    rows = (
        value_and_gradient(ours, torch.float32),
        value_and_gradient(theirs, torch.float32),
        value_and_gradient(ours, torch.float64),
    )
    for single, library, double in zip(*rows, strict=True):
        assert_close("timm", single, library, 4e-6)
        assert_close("timm, from float64", single, double, 4e-7)

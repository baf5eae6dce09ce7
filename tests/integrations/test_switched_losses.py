# Owns: libraries' losses on random logits, before their switch and inside it: values, gradients, and that the fused
# loss computed them.
# Must not know: detectors, formulas.
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple

import focal_ext
import pytest
import torch
from focal_ext import compat
from recipes import PAGE, run
from stand_ins import beside
from torch import Tensor

rng = torch.Generator().manual_seed(6)
MAPS = torch.randn(2, 4, 6, 5, generator=rng, dtype=torch.float64) * 3
IDS = torch.randint(0, 4, (2, 6, 5), generator=rng)
IGNORED = torch.where(torch.rand(2, 6, 5, generator=rng) < 0.3, 255, IDS)
LABELS = torch.randint(0, 2, MAPS.shape, generator=rng)
SOFT = torch.rand(MAPS.shape, generator=rng, dtype=torch.float64)
PER_CLASS = torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=torch.float64)
BINARY = torch.where(torch.rand(2, 6, 5, generator=rng) < 0.3, 255, LABELS[:, 0])
MASKS = LABELS.double()
Call = Callable[[ModuleType, Tensor], Tensor]


class Row(NamedTuple):
    module: str  # of the library, given to the calls
    fused: dict[str, Call]
    left: dict[str, Call] | None = None  # to the library
    needs: Callable[[], AbstractContextManager[Any]] = nullcontext
    files: tuple[str, ...] = ()  # of a package without its __init__
    tolerance: float = 1e-12  # both sides round a dozen times, in float64


def each(reductions: tuple[str, ...], call: Callable[[ModuleType, Tensor, str], Tensor]) -> dict[str, Call]:
    return {r: (lambda lib, x, r=r: call(lib, x, r)) for r in reductions}


def named(**calls: Call) -> dict[str, Call]:
    return calls


SUMS = ("mean", "sum")
KORNIA = {
    **{f"softmax {k}": v for k, v in each(SUMS, lambda lib, x, r: lib.focal_loss(x, IDS, None, 2.0, r)).items()},
    **{
        f"softmax weighted {k}": v
        for k, v in each(SUMS, lambda lib, x, r: lib.focal_loss(x, IGNORED, 0.3, 1.5, r, PER_CLASS, 255)).items()
    },
    "softmax module": lambda lib, x: lib.FocalLoss(0.3, reduction="mean", ignore_index=255)(x, IGNORED),
    **{
        f"sigmoid {k}": v
        for k, v in each(SUMS, lambda lib, x, r: lib.binary_focal_loss_with_logits(x, LABELS, 0.25, 2.0, r)).items()
    },
    "sigmoid weighted": lambda lib, x: lib.binary_focal_loss_with_logits(
        x, MASKS, 0.3, 1.5, "mean", PER_CLASS + 0.1, PER_CLASS
    ),
    "sigmoid without positives": lambda lib, x: lib.binary_focal_loss_with_logits(x, MASKS, 1.0, 1.5, "sum", PER_CLASS),
    "sigmoid ignored": lambda lib, x: lib.binary_focal_loss_with_logits(
        x, torch.where(SOFT.round() == MASKS, MASKS, -100.0), None, 2.0, "mean"
    ),
    "sigmoid module": lambda lib, x: lib.BinaryFocalLossWithLogits(0.3, reduction="mean")(x, MASKS),
}
SMP = {
    **{
        f"multiclass {k}": v
        for k, v in each(SUMS, lambda lib, x, r: lib.FocalLoss("multiclass", 0.3, reduction=r)(x, IDS)).items()
    },
    **{
        f"multiclass ignored {k}": v
        for k, v in each(
            SUMS, lambda lib, x, r: lib.FocalLoss("multiclass", None, 1.5, 255, reduction=r)(x, IGNORED)
        ).items()
    },
    **{
        f"multiclass weighted {k}": v
        for k, v in each(
            SUMS,
            lambda lib, x, r: lib.FocalLoss("multiclass", 0.25, reduction=r, class_weights=PER_CLASS.tolist())(x, IDS),
        ).items()
    },
    **{
        f"multilabel {k}": v
        for k, v in each(SUMS, lambda lib, x, r: lib.FocalLoss("multilabel", 0.3, reduction=r)(x, MASKS)).items()
    },
    **{
        f"binary {k}": v
        for k, v in each(
            SUMS, lambda lib, x, r: lib.FocalLoss("binary", 0.3, reduction=r)(x[:, :1], LABELS[:, 0])
        ).items()
    },
    **{
        f"binary ignored {k}": v
        for k, v in each(
            SUMS, lambda lib, x, r: lib.FocalLoss("binary", 0.3, ignore_index=255, reduction=r)(x[:, 0], BINARY)
        ).items()
    },
    "binary ignored float": lambda lib, x: lib.FocalLoss("binary", ignore_index=255)(x[:, 0], BINARY.double()),
}
MONAI = {
    **{
        f"ids {k}": v
        for k, v in each(
            ("mean", "sum", "none"),
            lambda lib, x, r: lib.FocalLoss(to_onehot_y=True, alpha=0.3, ignore_index=255, reduction=r)(
                x, IGNORED[:, None]
            ),
        ).items()
    },
    "softmax": lambda lib, x: lib.FocalLoss(False, True, 1.5, [0.2, 0.9, 1.5], [0.5, 1.0, 2.0], use_softmax=True)(
        x, IDS[:, None]
    ),
    "dense": lambda lib, x: lib.FocalLoss(alpha=[0.2, 0.9, 1.5, 0.7], weight=2.0)(x, MASKS),
}


def sam3(lib: ModuleType, x: Tensor, **options: Any) -> Tensor:
    return lib.sigmoid_focal_loss(x, MASKS.view(x.shape), 3.0, triton=False, **options)


def rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1).reshape(-1, 4)


CLASS_OR_NONE = torch.randint(0, 5, (60,), generator=rng)
SCORES, PER_ROW = torch.rand(60, generator=rng, dtype=torch.float64), torch.rand(60, generator=rng, dtype=torch.float64)
QUALITY = (CLASS_OR_NONE[:, None] == torch.arange(4)) * SCORES[:, None]
MMDET = named(
    focal=lambda lib, x: lib.focal_loss.FocalLoss(loss_weight=2.0)(rows(x), CLASS_OR_NONE, PER_ROW, avg_factor=7.0),
    activated=lambda lib, x: lib.focal_loss.FocalLoss(activated=True)(rows(x).sigmoid(), CLASS_OR_NONE),
    quality=lambda lib, x: lib.gfocal_loss.QualityFocalLoss(beta=1.5)(
        rows(x), (CLASS_OR_NONE, SCORES), reduction_override="none"
    ),
    varifocal=lambda lib, x: lib.varifocal_loss.VarifocalLoss(iou_weighted=False)(rows(x), QUALITY, avg_factor=3.0),
)
HEAT = torch.where(SOFT > 0.95, 1.0, SOFT)
MMDET_GAUSSIAN = named(
    mean=lambda lib, x: lib.gaussian_focal_loss.GaussianFocalLoss()(x.sigmoid().clamp(1e-4, 1 - 1e-4), HEAT),
    divided=lambda lib, x: lib.gaussian_focal_loss.GaussianFocalLoss(loss_weight=2.0)(
        x.sigmoid().clamp(1e-4, 1 - 1e-4), HEAT, avg_factor=7.0
    ),
    weighted=lambda lib, x: lib.gaussian_focal_loss.GaussianFocalLoss(alpha=1.5, gamma=3.0)(
        x.sigmoid().clamp(1e-4, 1 - 1e-4), HEAT, weight=SOFT, reduction_override="none"
    ),
)
MMSEG = named(
    dense=lambda lib, x: lib.FocalLoss(alpha=0.3, class_weight=PER_CLASS.tolist(), loss_weight=2.0)(x, LABELS, SCORES),
    avg_factor=lambda lib, x: lib.FocalLoss(alpha=[0.1, 0.2, 0.5, 0.9], gamma=1.5)(x, LABELS, avg_factor=7.0),
    unreduced=lambda lib, x: lib.FocalLoss(reduction="none")(x, LABELS),
)
SAM3 = named(
    masks=lambda lib, x: sam3(lib, x.flatten(2).flatten(0, 1)),
    multimask=lambda lib, x: sam3(lib, x, alpha=0.4, gamma=0, loss_on_multimask=True),
    unreduced=lambda lib, x: sam3(lib, x, alpha=-1, gamma=1.5, reduce=False),
)
ROWS: dict[str, Row] = {
    "kornia": Row(
        "kornia.losses",
        KORNIA,
        named(
            none=lambda lib, x: lib.focal_loss(x, IDS, 0.3),
            soft=lambda lib, x: lib.binary_focal_loss_with_logits(x, SOFT, reduction="mean"),
        ),
    ),
    "segmentation_models_pytorch": Row(
        "segmentation_models_pytorch.losses",
        SMP,
        named(
            normalized=lambda lib, x: lib.FocalLoss("multiclass", normalized=True)(x, IDS),
            reduced=lambda lib, x: lib.FocalLoss("multilabel", reduction="sum", reduced_threshold=0.5)(x, MASKS),
            probabilities=lambda lib, x: lib.FocalLoss("binary", from_logits=False)(x.sigmoid(), MASKS),
            soft=lambda lib, x: lib.FocalLoss("multilabel")(x, SOFT),
        ),
    ),
    "mmdet": Row(
        "mmdet.models.losses",
        MMDET,
        needs=lambda: beside(
            "mmcv", "mmengine", "mmdet.registry", empty=("mmdet", "mmdet.models", "mmdet.models.losses")
        ),
        files=("focal_loss", "gfocal_loss", "varifocal_loss"),
    ),
    "mmseg": Row(
        "mmseg.models.losses.focal_loss",
        MMSEG,
        needs=lambda: beside(
            "mmcv", "mmengine", "mmseg.registry", empty=("mmseg", "mmseg.models", "mmseg.models.losses")
        ),
    ),
    # mmdet adds 1e-12 to probabilities of 1e-4 and more
    "mmdet heat maps": Row(
        "mmdet.models.losses",
        MMDET_GAUSSIAN,
        named(
            weights=lambda lib, x: lib.gaussian_focal_loss.GaussianFocalLoss(pos_weight=2.0)(
                x.sigmoid().clamp(1e-4, 1 - 1e-4), HEAT
            )
        ),
        needs=lambda: beside(
            "mmcv", "mmengine", "mmdet.registry", empty=("mmdet", "mmdet.models", "mmdet.models.losses")
        ),
        files=("gaussian_focal_loss",),
        tolerance=1e-8,
    ),
    "monai": Row("monai.losses", MONAI, tolerance=1e-6),  # float32 there, see test_losses.py
    "sam3": Row(
        "sam3.train.loss.loss_fns",
        SAM3,
        needs=lambda: beside("torchmetrics", "sam3.model", empty=("sam3", "sam3.train", "sam3.train.loss")),
    ),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the fused losses that were called."""
    seen: list[str] = []
    for name in focal_ext.losses.__all__:
        fused = getattr(focal_ext.losses, name)
        if not isinstance(fused, type):
            monkeypatch.setattr(
                focal_ext.losses,
                name,
                lambda *args, fused=fused, name=name, **options: seen.append(name) or fused(*args, **options),
            )
    return seen


@pytest.fixture(params=ROWS)
def library(request: pytest.FixtureRequest) -> Iterator[tuple[str, ModuleType]]:
    row = ROWS[request.param]
    if importlib.util.find_spec(row.module.partition(".")[0]) is None:
        pytest.skip(f"{request.param} is not installed")
    with row.needs():
        for file in row.files:
            importlib.import_module(f"{row.module}.{file}")
        yield request.param, importlib.import_module(row.module)


def value_and_gradient(call: Call, lib: ModuleType) -> tuple[Tensor, Tensor]:
    leaf = MAPS.clone().requires_grad_()
    value = call(lib, leaf)
    return value.detach(), torch.autograd.grad(
        value, leaf, torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    )[0]


def test_values_and_gradients_inside_the_switch_are_the_librarys(
    library: tuple[str, ModuleType], calls: list[str], assert_close: Callable[..., None]
) -> None:
    name, lib = library
    row, switch = ROWS[name], getattr(compat, name.split()[0])
    for call_name, call in (row.fused | (row.left or {})).items():
        theirs = value_and_gradient(call, lib)
        with switch.patched() as names:
            ours = value_and_gradient(call, lib)
        assert len(calls) == (call_name in row.fused), call_name
        assert names and all("." in place for place in names)
        calls.clear()
        for a, b in zip(ours, theirs, strict=True):
            assert_close(f"{name} switched", a, b, row.tolerance)
    line = f"focal_ext.compat.{name.split()[0]}.apply()"
    assert line in PAGE.read_text()
    run(line, focal_ext=focal_ext)
    assert switch.restore() == names

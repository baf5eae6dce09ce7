# Owns: the switches of libraries that no package index has, against their losses written from their formulas;
# mmsegmentation's labels.
# Must not know: the libraries, kernels. tests/integrations/test_switched_losses.py has those that can be installed.
from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from focal_ext import compat
from test_compat import IDS, KEPT, T, X, assert_same, one_hot, textbook
from torch import Tensor, nn

MASKS = torch.randint(0, 2, (2, 3, 4, 5), generator=torch.Generator().manual_seed(1)).double()
LOGITS = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
MAPPED = torch.where(
    torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(3)) < 0.2,
    255,
    torch.randint(0, 4, (2, 4, 5), generator=torch.Generator().manual_seed(4)),
)
CHOSEN = torch.tensor([0, 2])  # classes of a federated loss


class SigmoidFocalClassificationLoss(nn.Module):
    gamma, alpha = 2.0, 0.25

    def forward(self, input: Tensor, target: Tensor, weights: Tensor) -> Tensor:
        return textbook(input, target, self.gamma, self.alpha) * weights[..., None]


def sam_focal(
    inputs: Tensor,
    targets: Tensor,
    num_objects: float,
    alpha: float = 0.25,
    gamma: float = 2,
    loss_on_multimask: bool = False,
) -> Tensor:
    loss = textbook(inputs, targets, gamma, None if alpha < 0 else alpha)
    return loss.mean((2, 3)) / num_objects if loss_on_multimask else loss.mean(1).sum() / num_objects


class FastRCNNOutputLayers:
    use_fed_loss, fed_loss_num_classes, fed_loss_cls_weights = True, 2, None

    def get_fed_loss_classes(
        self, gt_classes: Tensor, num_fed_loss_classes: int, num_classes: int, weight: Any
    ) -> Tensor:
        return CHOSEN

    def sigmoid_cross_entropy_loss(self, pred_class_logits: Tensor, gt_classes: Tensor) -> Tensor:
        classes = pred_class_logits.shape[1] - 1
        loss = textbook(pred_class_logits[:, :-1], one_hot(gt_classes, classes), 0, None)
        return (loss[:, CHOSEN] if self.use_fed_loss else loss).sum() / len(gt_classes)


def focal_jit(inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none") -> Tensor:
    return textbook(inputs, targets, gamma, None if alpha < 0 else alpha).sum()


class FocalLoss:
    """mmsegmentation's, of class ids, for which the CPU has none there."""

    use_sigmoid, gamma, alpha, reduction, class_weight, loss_weight = True, 2.0, 0.5, "mean", [0.5, 2.0, 1.0], 3.0

    def forward(
        self, pred, target, weight=None, avg_factor=None, reduction_override=None, ignore_index=255, **kwargs
    ) -> Tensor:  # type: ignore[no-untyped-def]
        classes = pred.shape[1]
        hot = (target[:, None] == (torch.arange(classes).view(-1, 1, 1) if classes > 1 else 1)).double()
        loss = (
            textbook(pred, hot, self.gamma, self.alpha)
            * (target != ignore_index)[:, None]
            * torch.tensor(self.class_weight)[:classes].view(-1, 1, 1)
        )
        loss = loss if weight is None else loss * weight.view(target.shape)[:, None]
        return self.loss_weight * (
            loss.sum() / (avg_factor + torch.finfo(torch.float32).eps) if avg_factor else loss.mean()
        )


PROBABLE, HEAT = (
    LOGITS.sigmoid().clamp(1e-4, 1 - 1e-4),
    (LOGITS.roll(1) / 4).clamp(0, 1).where(LOGITS.roll(1) < 2, torch.tensor(1.0, dtype=torch.float64)),
)


def neg_loss_cornernet(pred: Tensor, gt: Tensor, mask: Tensor | None = None) -> Tensor:
    kept = torch.ones_like(gt) if mask is None else mask[:, None].double().expand_as(gt)
    peaks = (gt == 1).double() * kept
    loss = -((1 - pred) ** 2) * pred.log() * peaks - (1 - gt) ** 4 * pred**2 * (1 - pred).log() * (gt < 1) * kept
    return loss.sum() / peaks.sum().clamp(min=1)


class FocalLossCenterNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neg_loss = neg_loss_cornernet

    def forward(self, out: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.neg_loss(out, target, mask=mask)


PLACES: dict[str, dict[str, dict[str, Any]]] = {
    "openpcdet": {
        "pcdet.utils.loss_utils": {
            "SigmoidFocalClassificationLoss": SigmoidFocalClassificationLoss,
            "neg_loss_cornernet": neg_loss_cornernet,
            "FocalLossCenterNet": FocalLossCenterNet,
        }
    },
    "sam2": {"training.loss_fns": {"sigmoid_focal_loss": sam_focal}},
    "detectron2": {
        "detectron2.modeling.meta_arch.retinanet": {"sigmoid_focal_loss_jit": focal_jit},
        "detectron2.modeling.meta_arch.fcos": {"sigmoid_focal_loss_jit": focal_jit},
        "detectron2.modeling.roi_heads.fast_rcnn": {"FastRCNNOutputLayers": FastRCNNOutputLayers},
    },
    "mmseg": {"mmseg.models.losses.focal_loss": {"FocalLoss": FocalLoss}},
}
CALLS: dict[str, tuple[str, Tensor, Callable[[dict[str, ModuleType], Tensor], Tensor]]] = {
    "OpenPCDet": (
        "openpcdet",
        X.view(2, 6, 5),
        lambda lib, x: lib["loss_utils"].SigmoidFocalClassificationLoss()(x, T.view(2, 6, 5), KEPT.view(2, 6)),
    ),
    "OpenPCDet heat maps": ("openpcdet", PROBABLE, lambda lib, x: lib["loss_utils"].neg_loss_cornernet(x, HEAT)),
    "OpenPCDet masked heat maps": (
        "openpcdet",
        PROBABLE,
        lambda lib, x: lib["loss_utils"].FocalLossCenterNet()(x, HEAT, MAPPED < 3),
    ),
    "OpenPCDet heat maps without peaks": (
        "openpcdet",
        PROBABLE,
        lambda lib, x: lib["loss_utils"].neg_loss_cornernet(x, HEAT * 0.9),
    ),
    "SAM 2 masks": ("sam2", X, lambda lib, x: lib["loss_fns"].sigmoid_focal_loss(x, T, 3.0)),
    "SAM 2 object scores": (
        "sam2",
        X[:, :1],
        lambda lib, x: lib["loss_fns"].sigmoid_focal_loss(x, T[:, :1], torch.tensor(3.0), alpha=-1, gamma=0.0),
    ),
    "SAM 2 several masks": (
        "sam2",
        LOGITS,
        lambda lib, x: lib["loss_fns"].sigmoid_focal_loss(x, MASKS, 3.0, 0.4, 2, loss_on_multimask=True),
    ),
    "detectron2 RetinaNet": (
        "detectron2",
        X,
        lambda lib, x: lib["retinanet"].sigmoid_focal_loss_jit(x, T, alpha=0.25, gamma=2.0, reduction="sum"),
    ),
    "detectron2 FCOS": (
        "detectron2",
        X,
        lambda lib, x: lib["fcos"].sigmoid_focal_loss_jit(x, T, alpha=0.25, gamma=2.0, reduction="sum"),
    ),
    "detectron2 federated": (
        "detectron2",
        X,
        lambda lib, x: lib["fast_rcnn"].FastRCNNOutputLayers().sigmoid_cross_entropy_loss(x, IDS.clamp(max=4)),
    ),
    "detectron2 all classes": (
        "detectron2",
        X,
        lambda lib, x: all_classes(lib["fast_rcnn"].FastRCNNOutputLayers()).sigmoid_cross_entropy_loss(
            x, IDS.clamp(max=4)
        ),
    ),
    "mmseg ids": (
        "mmseg",
        LOGITS,
        lambda lib, x: lib["focal_loss"].FocalLoss().forward(x, MAPPED, KEPT.repeat(4)[:40]),
    ),
    "mmseg ids, avg_factor": (
        "mmseg",
        LOGITS,
        lambda lib, x: lib["focal_loss"].FocalLoss().forward(x, MAPPED, avg_factor=7.0),
    ),
    "mmseg a single class": (
        "mmseg",
        LOGITS[:, :1],
        lambda lib, x: single(lib["focal_loss"].FocalLoss()).forward(x, MAPPED.clamp(max=1)),
    ),
}


def all_classes(layers: Any) -> Any:
    layers.use_fed_loss = False
    return layers


def single(loss: Any) -> Any:
    loss.class_weight = [2.0]
    return loss


@pytest.fixture
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The modules of a library by their last names."""
    made = {}
    for dotted, names in PLACES[request.param].items():
        parts = dotted.split(".")
        for length in range(1, len(parts) + 1):
            name = ".".join(parts[:length])
            if name not in sys.modules or not hasattr(sys.modules[name], "made_here"):
                module = ModuleType(name)
                vars(module).update(__path__=[], made_here=True)
                monkeypatch.setitem(sys.modules, name, module)
        vars(sys.modules[dotted]).update({key: own(value, dotted) for key, value in names.items()})
        made[parts[-1]] = sys.modules[dotted]
    yield made


def own(value: Any, module: str) -> Any:
    """A class of its own for each test: a switch changes it."""
    return (
        type(value.__name__, (value,), {**{k: v for k, v in vars(value).items() if callable(v)}, "__module__": module})
        if isinstance(value, type)
        else value
    )


@pytest.mark.parametrize("library, logits, call", CALLS.values(), ids=CALLS, indirect=["library"])
def test_values_and_gradients_inside_the_switch_are_the_formulas(
    library: dict[str, ModuleType], logits: Tensor, call: Callable[..., Tensor], request: Any
) -> None:
    switch = getattr(compat, CALLS[request.node.callspec.id][0])

    def fused(x: Tensor) -> Tensor:
        with switch.patched() as names:
            assert len(names) >= len(library)
            return call(library, x)

    assert_same(fused, lambda x: call(library, x), logits)
    assert not any(hasattr(value, "takes_original") for module in library.values() for value in vars(module).values())


def test_what_a_switch_refuses_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"inputs: with loss_on_multimask they are masks \(N, M, H, W\), got shape \(12, 5\)"
    ):
        compat.sam2.sigmoid_focal_loss(X, T, 1.0, loss_on_multimask=True)
    with pytest.raises(RuntimeError, match=r"alpha: must be in \[0, 1\], got -1; triton=False"):
        compat.sam3.sigmoid_focal_loss(X, T, 1.0, alpha=-1)
    loss = SimpleNamespace(use_sigmoid=True, reduction="mean", class_weight=None, alpha=0.5, gamma=2.0, loss_weight=1.0)
    with pytest.raises(ValueError, match="weight: must have an entry for each of 40 positions of all images, got"):
        compat.mmseg._forward(loss, LOGITS, MAPPED, torch.ones(3))
    with pytest.raises(ValueError, match='avg_factor: cannot be used with reduction="sum"'):
        compat.mmseg._forward(loss, LOGITS, MAPPED, avg_factor=1.0, reduction_override="sum")

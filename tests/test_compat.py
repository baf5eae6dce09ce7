# Owns: focal_ext.compat without the libraries it stands in for: signatures, normalisers, formulas. tests/integrations
# has the libraries.
# Must not know: kernels.
from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import focal_ext
import pytest
import torch
from bench import peers
from focal_ext import compat
from focal_ext.compat import apex, detr, effdet, fvcore, mmcv, mmdet, monai, torchvision
from test_constants import PEERS
from torch import Tensor

MMDET = "pred, target, weight=None, "
SIGNATURES: dict[Callable[..., Any], str] = {
    torchvision.sigmoid_focal_loss: "inputs, targets, alpha=0.25, gamma=2, reduction='none'",
    fvcore.sigmoid_focal_loss: "inputs, targets, alpha=-1, gamma=2, reduction='none'",
    fvcore.sigmoid_focal_loss_jit: "inputs, targets, alpha=-1, gamma=2, reduction='none'",
    fvcore.sigmoid_focal_loss_star: "inputs, targets, alpha=-1, gamma=1, reduction='none'",
    mmcv.sigmoid_focal_loss: "input, target, gamma=2.0, alpha=0.25, weight=None, reduction='mean'",
    mmcv.SigmoidFocalLoss: "gamma, alpha, weight=None, reduction='mean'",
    mmcv.softmax_focal_loss: "input, target, gamma=2.0, alpha=0.25, weight=None, reduction='mean'",
    mmcv.SoftmaxFocalLoss: "gamma, alpha, weight=None, reduction='mean'",
    mmdet.sigmoid_focal_loss: MMDET + "gamma=2.0, alpha=0.25, reduction='mean', avg_factor=None",
    mmdet.quality_focal_loss: MMDET + "reduction='mean', avg_factor=None, beta=2.0",
    mmdet.varifocal_loss: MMDET + "alpha=0.75, gamma=2.0, iou_weighted=True, reduction='mean', avg_factor=None",
    mmdet.FocalLoss: "use_sigmoid=True, gamma=2.0, alpha=0.25, reduction='mean', loss_weight=1.0, activated=False",
    mmdet.FocalLoss.forward: "self, pred, target, weight=None, avg_factor=None, reduction_override=None",
    mmdet.QualityFocalLoss: "use_sigmoid=True, beta=2.0, reduction='mean', loss_weight=1.0, activated=False",
    mmdet.VarifocalLoss: "use_sigmoid=True, alpha=0.75, gamma=2.0, iou_weighted=True, reduction='mean', "
    "loss_weight=1.0",
    apex.focal_loss: "cls_output, cls_targets_at_level, num_positive_sum, num_real_classes, alpha, gamma, "
    "label_smoothing=0.0",
    detr.sigmoid_focal_loss: "inputs, targets, num_boxes, alpha=0.25, gamma=2",
    effdet.new_focal_loss: "logits, targets, alpha, gamma, normalizer, label_smoothing=0.01",
    effdet.focal_loss_legacy: "logits, targets, alpha, gamma, normalizer",
    monai.FocalLoss: (
        "include_background=True, to_onehot_y=False, gamma=2.0, alpha=None, weight=None, reduction='mean', "
        "use_softmax=False, ignore_index=None"
    ),
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f"{f.__module__}.{f.__qualname__}")
def test_names_order_and_defaults_are_the_librarys(function: Callable[..., Any]) -> None:
    parameters = inspect.signature(function).parameters.values()
    assert ", ".join(str(p.replace(annotation=p.empty)) for p in parameters) == SIGNATURES[function]


def test_nothing_imports_the_libraries_and_focal_ext_imports_compat_when_named() -> None:
    code = (
        "import sys, focal_ext; assert not any(m.startswith(('focal_ext.compat', 'focal_ext.distributed')) for m in "
        "sys.modules);"
        "[getattr(focal_ext.compat, name) for name in focal_ext.compat.__all__]; focal_ext.distributed;"
        "print(sorted({m.split('.')[0] for m in sys.modules} & set(focal_ext.compat.__all__ + ['transformers', "
        "'detectron2'])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p)},
    )
    assert done.stdout.strip() == "[]"
    with pytest.raises(AttributeError, match="keras.*apex"):
        compat.keras  # noqa: B018
    with pytest.raises(AttributeError, match="keras"):
        focal_ext.keras  # noqa: B018


def gradient(loss: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


def assert_same(ours: Callable[[Tensor], Tensor], theirs: Callable[[Tensor], Tensor], x: Tensor) -> None:
    """Values and gradients in float64."""
    for a, b in zip(gradient(ours, x.double()), gradient(theirs, x.double()), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def textbook(x: Tensor, t: Tensor, gamma: float, alpha: float | None) -> Tensor:
    p = torch.sigmoid(x)
    a = 1 if alpha is None else alpha * t + (1 - alpha) * (1 - t)
    return -a * (t * (1 - p) ** gamma * p.log() + (1 - t) * p**gamma * torch.log1p(-p))


def one_hot(ids: Tensor, classes: int) -> Tensor:
    return (ids[..., None] == torch.arange(classes)).double()


X = torch.randn(12, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
IDS = torch.tensor([0, 4, 5, 2, 5, 5, 1, 3, 0, 5, 4, 5])  # of mmcv, mmdet: 5 is background
LABELLED = IDS.clamp(max=4)
T = one_hot(IDS, 5)
KEPT = torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 1, 0, 1, 1.0], dtype=torch.float64)
PADDED = torch.cat([X, torch.full((12, 3), 7.0, dtype=torch.float64)], 1)
PER_CLASS = torch.tensor([0.5, 2.0, 1.0, 0.0, 3.0], dtype=torch.float64)
EACH = torch.rand(12, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
SCORES = torch.linspace(0.1, 0.9, 12, dtype=torch.float64)
IGNORED_LABELS = LABELLED.masked_fill(KEPT == 0, 9)


def softmax(x: Tensor, ids: Tensor, gamma: float, alpha: float) -> Tensor:
    return alpha * peers.softmax_gather(x, ids, gamma)


def with_ignored(background: int, ignored: int) -> Tensor:
    ids = torch.where(IDS == 5, background, IDS)
    return ids.masked_fill(KEPT == 0, ignored)


# Ours, and the library's definition from its documentation or source.
DEFINITIONS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "mmcv mean over rows": (lambda x: mmcv.sigmoid_focal_loss(x, IDS), lambda x: textbook(x, T, 2, 0.25).sum() / 12),
    "mmcv positional": (
        lambda x: mmcv.sigmoid_focal_loss(x, IDS, 1.5, 0.4, None, "sum"),
        lambda x: textbook(x, T, 1.5, 0.4).sum(),
    ),
    "mmcv map": (
        lambda x: mmcv.SigmoidFocalLoss(2.0, 0.25, reduction="none")(x, IDS),
        lambda x: textbook(x, T, 2, 0.25),
    ),
    "mmcv weight of the row's label": (
        lambda x: mmcv.SigmoidFocalLoss(2.0, 0.25, PER_CLASS)(x, LABELLED),
        lambda x: (textbook(x, one_hot(LABELLED, 5), 2, 0.25) * PER_CLASS[LABELLED][:, None]).sum() / 12,
    ),
    "mmcv of one class": (
        lambda x: mmcv.sigmoid_focal_loss(x[:, :1], IDS.clamp(max=1)),
        lambda x: textbook(x[:, :1], one_hot(IDS, 1), 2, 0.25).sum() / 12,
    ),
    "mmdet of one class": (
        lambda x: mmdet.sigmoid_focal_loss(x[:, :1], IDS.clamp(max=1)),
        lambda x: textbook(x[:, :1], one_hot(IDS, 1), 2, 0.25).mean(),
    ),
    "mmcv softmax mean over rows": (
        lambda x: mmcv.softmax_focal_loss(x, LABELLED),
        lambda x: softmax(x, LABELLED, 2, 0.25).sum() / 12,
    ),
    "mmcv softmax positional": (
        lambda x: mmcv.softmax_focal_loss(x, LABELLED, 1.5, 2.0, None, "sum"),
        lambda x: softmax(x, LABELLED, 1.5, 2.0).sum(),
    ),
    "mmcv softmax of rows": (
        lambda x: mmcv.SoftmaxFocalLoss(2.0, 0.25, reduction="none")(x, LABELLED),
        lambda x: softmax(x, LABELLED, 2, 0.25),
    ),
    "mmcv softmax weight of the row's label": (
        lambda x: mmcv.SoftmaxFocalLoss(2.0, 0.25, PER_CLASS)(x, LABELLED),
        lambda x: (softmax(x, LABELLED, 2, 0.25) * PER_CLASS[LABELLED]).sum() / 12,
    ),
    "apex": (
        lambda x: apex.focal_loss(x, with_ignored(-1, -2), torch.tensor(3.0), 5, 0.24, 2.0),
        lambda x: (textbook(x, T, 2, 0.24) * KEPT[:, None]).sum() / 3,
    ),
    "apex by apply, one-element normaliser": (
        lambda x: apex.FocalLoss.apply(x, with_ignored(-1, -2), torch.tensor([3.0]), 5, 0.24, 2.0, 0.0),
        lambda x: (textbook(x, T, 2, 0.24) * KEPT[:, None]).sum() / 3,
    ),
    "apex smoothing in the cross entropy only": (
        lambda x: apex.focal_loss(x, with_ignored(-1, -1), torch.tensor(2.0), 5, 0.24, 2.0, 0.1),
        lambda x: smoothed(x, T * KEPT[:, None], 0.1).sum() / 2,
    ),
    "mmdet mean over logits": (lambda x: mmdet.FocalLoss()(x, IDS), lambda x: textbook(x, T, 2, 0.25).mean()),
    "mmdet avg_factor": (
        lambda x: mmdet.FocalLoss(loss_weight=2.0)(x, IDS, KEPT, avg_factor=3),
        lambda x: 2 * (textbook(x, T, 2, 0.25) * KEPT[:, None]).sum() / (3 + torch.finfo(torch.float32).eps),
    ),
    "detr": (
        lambda x: detr.sigmoid_focal_loss(x.view(2, 6, 5), T.view(2, 6, 5), 3.0),
        lambda x: textbook(x, T, 2, 0.25).sum() / 6 / 3,
    ),
    "fvcore alpha off": (lambda x: fvcore.sigmoid_focal_loss(x, T), lambda x: textbook(x, T, 2, None)),
    "torchvision alpha off": (
        lambda x: torchvision.sigmoid_focal_loss(x, T, -1, 2, "mean"),
        lambda x: textbook(x, T, 2, None).mean(),
    ),
    "effdet": (
        lambda x: effdet.new_focal_loss(x, T, 0.25, 1.5, torch.tensor(4.0), 0.0),
        lambda x: textbook(x, T, 1.5, 0.25) / 4,
    ),
    "effdet legacy": (
        lambda x: effdet.focal_loss_legacy(x, T, 0.25, 1.5, 4.0),
        lambda x: textbook(x, T, 1.5, 0.25) / 4,
    ),
    "mmdet weights in one dimension": (
        lambda x: mmdet.FocalLoss(reduction="sum")(x, IDS, EACH.flatten()),
        lambda x: (textbook(x, T, 2, 0.25) * EACH).sum(),
    ),
    "mmdet probabilities": (
        lambda x: mmdet.FocalLoss(activated=True)(torch.sigmoid(x), IDS),
        lambda x: textbook(x, T, 2, 0.25).mean(),
    ),
    "mmdet quality, of rows": (
        lambda x: mmdet.QualityFocalLoss(reduction="none")(x, (IDS, SCORES)),
        lambda x: ((T * SCORES[:, None] - x.sigmoid()).abs() ** 2 * entropy(x, T * SCORES[:, None])).sum(1),
    ),
    "mmdet quality, mean over rows": (
        lambda x: mmdet.QualityFocalLoss()(x, T * SCORES[:, None]),
        lambda x: ((T * SCORES[:, None] - x.sigmoid()).abs() ** 2 * entropy(x, T * SCORES[:, None])).sum() / 12,
    ),
    "mmdet varifocal": (
        lambda x: mmdet.VarifocalLoss()(x, T * SCORES[:, None]),
        lambda x: varifocal(x, T * SCORES[:, None], T * SCORES[:, None]).mean(),
    ),
    "mmdet varifocal without scores as weights": (
        lambda x: mmdet.VarifocalLoss(iou_weighted=False)(x, T * SCORES[:, None], EACH),
        lambda x: (varifocal(x, T * SCORES[:, None], T) * EACH).mean(),
    ),
    "monai sum of volumes": (
        lambda x: monai.FocalLoss(reduction="sum")(volume(x), volume(one_hot(LABELLED, 5))),
        lambda x: textbook(x, one_hot(LABELLED, 5), 2, None).sum() / 6,
    ),
    "monai sum of volumes, ignored voxels": (
        lambda x: monai.FocalLoss(to_onehot_y=True, reduction="sum", ignore_index=9)(
            volume(x), volume(IGNORED_LABELS[:, None])
        ),
        lambda x: sum(
            (textbook(x, one_hot(LABELLED, 5), 2, None) * KEPT[:, None])[i : i + 6].sum() / KEPT[i : i + 6].sum()
            for i in (0, 6)
        ),
    ),
    "monai ignored class of dense targets": (
        lambda x: monai.FocalLoss(ignore_index=4)(x, one_hot(LABELLED, 5)),
        lambda x: (textbook(x, one_hot(LABELLED, 5), 2, None) * (LABELLED != 4)[:, None]).sum() / (LABELLED != 4).sum(),
    ),
    "monai dense rows without a class are ignored": (
        lambda x: monai.FocalLoss(ignore_index=255)(x, T),
        lambda x: (textbook(x, T, 2, None) * T.sum(1, keepdim=True)).sum() / T.sum(),
    ),
    "monai alpha of each class, weight of each class": (
        lambda x: monai.FocalLoss(alpha=[0.1, 0.2, 0.3, 0.4, 0.5], weight=PER_CLASS)(x, T),
        lambda x: (
            textbook(x, T, 2, None)
            * PER_CLASS
            * torch.where(T == 1, torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5]).double(), 1.0)
        ).mean(),
    ),
    "monai ids": (
        lambda x: monai.FocalLoss(to_onehot_y=True)(x, LABELLED[:, None]),
        lambda x: textbook(x, one_hot(LABELLED, 5), 2, None).mean(),
    ),
    "monai without background": (
        lambda x: monai.FocalLoss(False, True, alpha=0.3)(x, LABELLED[:, None]),
        lambda x: textbook(x, one_hot(LABELLED, 5), 2, 0.3)[:, 1:].mean(),
    ),
    "monai softmax, the class 0 by 1 - alpha": (
        lambda x: monai.FocalLoss(to_onehot_y=True, use_softmax=True, alpha=0.3)(x, LABELLED[:, None]),
        lambda x: (softmax(x, LABELLED, 2, 1.0) * (0.3 + 0.4 * (LABELLED == 0).double())).sum() / x.numel(),
    ),
}


def entropy(x: Tensor, t: Tensor) -> Tensor:
    return -t * torch.sigmoid(x).log() - (1 - t) * torch.sigmoid(-x).log()


def varifocal(x: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    return torch.where(t > 0, weight, 0.75 * torch.sigmoid(x) ** 2) * entropy(x, t)


def volume(rows: Tensor) -> Tensor:
    """12 rows as two images of 2 x 3 voxels, channels second."""
    return rows.view(2, 2, 3, -1).movedim(-1, 1)


def smoothed(x: Tensor, t: Tensor, smoothing: float) -> Tensor:
    p, soft = torch.sigmoid(x), t * (1 - smoothing) + smoothing / 2
    modulator = (0.24 * t + 0.76 * (1 - t)) * (t * (1 - p) ** 2 + (1 - t) * p**2)
    return -modulator * (soft * p.log() + (1 - soft) * torch.log1p(-p))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_definition_written_out_gives_the_same_value_and_gradient(name: str) -> None:
    assert_same(*DEFINITIONS[name], X)


@pytest.mark.parametrize(
    "loss",
    [
        mmcv.sigmoid_focal_loss,
        mmcv.SigmoidFocalLoss(2.0, 0.25),
        lambda x, ids: mmdet.FocalLoss()(x, ids, avg_factor=len(ids)),
    ],
)
@pytest.mark.parametrize("logits, labels, value, slope", PEERS)
def test_the_librarys_own_test_values_come_out(
    loss: Callable[..., Tensor], logits: list, labels: list, value: float, slope: list
) -> None:
    found, grad = gradient(lambda x: loss(x, torch.tensor(labels)), torch.tensor(logits, dtype=torch.float64))
    assert found.item() == pytest.approx(value, abs=1e-6)
    assert torch.allclose(grad, torch.tensor(slope, dtype=torch.float64) * 2 / len(labels), rtol=0, atol=1e-6)


def test_padding_columns_have_no_loss_and_no_gradient() -> None:
    value, grad = gradient(
        lambda x: apex.focal_loss(x, with_ignored(-1, -2), torch.tensor(3.0), 5, 0.24, 2.0, 0.1), PADDED
    )
    plain, slope = gradient(lambda x: apex.focal_loss(x, with_ignored(-1, -2), torch.tensor(3.0), 5, 0.24, 2.0, 0.1), X)
    assert torch.equal(grad[:, 5:], torch.zeros(12, 3, dtype=torch.float64))
    torch.testing.assert_close(value, plain, rtol=1e-14, atol=0)
    torch.testing.assert_close(grad[:, :5], slope, rtol=1e-14, atol=0)


def test_channels_last_logits_are_read_in_place_by_monai() -> None:
    x = torch.randn(2, 5, 4, 6).to(memory_format=torch.channels_last)
    assert x.movedim(1, -1).is_contiguous()
    ids = torch.randint(0, 5, (2, 1, 4, 6))
    for reduction in ("none", "mean", "sum"):
        loss = monai.FocalLoss(to_onehot_y=True, reduction=reduction)
        torch.testing.assert_close(loss(x, ids), loss(x.contiguous(), ids), rtol=1e-6, atol=0)
    assert monai.FocalLoss(to_onehot_y=True, reduction="none")(x, ids).shape == x.shape


class _Copies(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts copies of whole logits."""

    def __init__(self, numel: int) -> None:
        super().__init__()
        self.numel, self.copies = numel, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if function.overloadpacket in (
            torch.ops.aten.clone,
            torch.ops.aten._to_copy,
            torch.ops.aten.copy_,
        ) and isinstance(result, Tensor):
            self.copies += result.numel() == self.numel
        return result


@pytest.mark.parametrize("layout, copies", [(torch.channels_last, 0), (torch.contiguous_format, 0)], ids=str)
def test_monai_copies_no_logits_where_the_layout_allows(layout: torch.memory_format, copies: int) -> None:
    x, ids = torch.randn(2, 5, 4, 6).to(memory_format=layout), torch.randint(0, 5, (2, 1, 4, 6))
    with _Copies(x.numel()) as seen:
        monai.FocalLoss(to_onehot_y=True)(x, ids)
    assert seen.copies == copies


def test_half_logits_give_the_unreduced_loss_in_float32_where_the_library_does() -> None:
    x, t = X.bfloat16(), T.bfloat16()
    for loss in (fvcore.sigmoid_focal_loss, fvcore.sigmoid_focal_loss_star, monai.FocalLoss(reduction="none")):
        assert loss(x, t).dtype == torch.float32
    assert torchvision.sigmoid_focal_loss(x, t).dtype == torch.bfloat16


# What other libraries' users write, of docs/integrations.md.
def test_detectron2s_line_takes_its_labels() -> None:
    ids = with_ignored(5, -1)
    ours = lambda x: focal_ext.sigmoid_focal_loss(x, ids, 0.25, 2.0, "sum", ignore_index=-1)  # noqa: E731
    assert_same(ours, lambda x: (textbook(x, T, 2, 0.25) * KEPT[:, None]).sum(), X)

# Owns: labels, targets and options that a library would not take, which focal_ext.compat refuses by the library's own
# convention.
# Must not know: formulas.
from __future__ import annotations

import math
from collections.abc import Callable

import focal_ext
import pytest
import torch
from focal_ext.compat import apex, detr, effdet, fvcore, mmcv, mmdet, monai, torchvision
from test_compat import IDS, KEPT, LABELLED, PADDED, PER_CLASS, T, X, with_ignored
from torch import Tensor


def ids_with(value: int) -> Tensor:
    return torch.where(torch.arange(12) == 7, value, LABELLED)


ONE = torch.tensor(1.0)
CONVENTIONS: dict[str, tuple[Callable[[int], Tensor], tuple[int, ...], tuple[int, ...], str]] = {
    # the call with one label of a value, the values it takes, those it refuses, and what the refusal says
    "apex": (
        lambda v: apex.focal_loss(X, ids_with(v), ONE, 5, 0.25, 2.0),
        (-2, -1, 0, 4),
        (-3, 5, 255),
        "0..4 positive, -1 background, -2 ignored",
    ),
    "apex padded": (
        lambda v: apex.focal_loss(PADDED, ids_with(v), ONE, 5, 0.25, 2.0),
        (4,),
        (5, 6, 8),
        "apex labels: 0..4 positive",
    ),
    "mmcv": (
        lambda v: mmcv.sigmoid_focal_loss(X, ids_with(v)),
        (0, 5),
        (-2, -1, 6),
        "mmcv labels: 0..4 positive, 5 background",
    ),
    "mmcv weight": (
        lambda v: mmcv.sigmoid_focal_loss(X, ids_with(v), 2.0, 0.25, PER_CLASS),
        (0, 4),
        (-1, 5),
        r"weight\[label\]",
    ),
    "mmcv softmax": (
        lambda v: mmcv.softmax_focal_loss(X, ids_with(v)),
        (0, 4),
        (-100, -1, 5),
        "mmcv labels of the softmax loss: 0..4, background is one of them",
    ),
    "mmcv softmax weight": (
        lambda v: mmcv.softmax_focal_loss(X, ids_with(v), 2.0, 0.25, PER_CLASS),
        (0, 4),
        (-1, 5),
        r"weight\[label\]",
    ),
    "mmdet": (
        lambda v: mmdet.FocalLoss()(X, ids_with(v)),
        (0, 5),
        (-2, -1, 6),
        "mmdet labels: 0..4 positive, 5 background, ignored anchors by a weight of 0",
    ),
    "mmdet quality": (lambda v: mmdet.QualityFocalLoss()(X, (ids_with(v), KEPT)), (0, 5), (-1, 6), "mmdet labels"),
    "monai": (
        lambda v: monai.FocalLoss(to_onehot_y=True)(X, ids_with(v)[:, None]),
        (0, 4),
        (-1, 5),
        "monai labels: 0..4",
    ),
    "monai ignored": (
        lambda v: monai.FocalLoss(to_onehot_y=True, ignore_index=255)(X, ids_with(v)[:, None]),
        (0, 255),
        (-1, 254),
        "monai labels: 0..4",
    ),
    "monai softmax": (
        lambda v: monai.FocalLoss(False, True, use_softmax=True)(X, ids_with(v)[:, None]),
        (0, 4),
        (-1, 5),
        "monai labels: 0..4",
    ),
}


@pytest.mark.parametrize("name", CONVENTIONS)
def test_labels_of_another_convention_are_refused_with_this_ones_name(name: str) -> None:
    call, taken, refused, sentence = CONVENTIONS[name]
    for value in taken:
        assert math.isfinite(call(value))
    for value in refused:
        with pytest.raises(ValueError, match=rf"targets: class id {value} at anchor 7 is outside .*{sentence}"):
            call(value)


def test_detectron2s_labels_in_apex_raise_instead_of_giving_another_loss() -> None:
    background_is_five = torch.where(IDS == 5, 5, IDS)
    with pytest.raises(ValueError, match="class id 5 at anchor 2"):
        apex.focal_loss(X, background_is_five, ONE, 5, 0.25, 2.0)


def test_unsigned_labels_do_not_wrap_around() -> None:
    with pytest.raises(ValueError, match="class id 255 at anchor 7"):
        mmcv.sigmoid_focal_loss(X, ids_with(255).to(torch.uint8))
    labels = with_ignored(5, 5).to(torch.uint8)
    assert torch.equal(mmcv.sigmoid_focal_loss(X, labels), mmcv.sigmoid_focal_loss(X, labels.long()))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_where_values_cannot_be_read_a_bad_label_is_nan(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a device does: nothing is read there."""
    monkeypatch.setattr(focal_ext._arguments, "values_are_readable", lambda *tensors: False)
    monkeypatch.setattr(focal_ext._arguments, "is_in_memory", lambda tensor: False)  # of a plain call nothing is asked
    call, taken, refused, _ = CONVENTIONS[name]
    assert all(math.isfinite(call(value)) for value in taken) and all(math.isnan(call(value)) for value in refused)


DENSE_AND_IDS: dict[str, tuple[Callable[[], Tensor], str]] = {
    "torchvision": (
        lambda: torchvision.sigmoid_focal_loss(X, IDS),
        "torchvision takes dense targets.*got class ids.*focal_ext.sigmoid_focal_loss",
    ),
    "fvcore": (lambda: fvcore.sigmoid_focal_loss(X, IDS), "fvcore takes dense targets"),
    "fvcore star": (lambda: fvcore.sigmoid_focal_loss_star(X, IDS), "fvcore takes dense targets"),
    "detr": (lambda: detr.sigmoid_focal_loss(X, IDS, 1.0), "DETR takes dense targets"),
    "detr of one dimension": (
        lambda: detr.sigmoid_focal_loss(X[0], T[0], 1.0),
        "inputs: DETR averages over dimension 1",
    ),
    "effdet": (lambda: effdet.new_focal_loss(X, IDS, 0.25, 2.0, 1.0), "effdet takes dense targets"),
    "effdet legacy": (lambda: effdet.focal_loss_legacy(X, IDS, 0.25, 2.0, 1.0), "effdet takes dense targets"),
    "mmdet varifocal": (lambda: mmdet.VarifocalLoss()(X, IDS), "mmdet's varifocal loss takes dense targets"),
    "mmdet quality without scores": (lambda: mmdet.QualityFocalLoss()(X, IDS), "class ids need a score each"),
    "monai ids": (
        lambda: monai.FocalLoss()(X, LABELLED[:, None]),
        r"monai takes dense targets.*got \(12, 1\); class ids need to_onehot_y=True",
    ),
    "monai dense": (
        lambda: monai.FocalLoss(to_onehot_y=True)(X, T),
        r"monai's class ids have the shape \(B, 1, ...\), got \(12, 5\)",
    ),
    "mmcv softmax dense": (lambda: mmcv.softmax_focal_loss(X, T), "must be class ids.*mmcv labels of the softmax loss"),
    "apex dense": (lambda: apex.focal_loss(X, T, ONE, 5, 0.25, 2.0), "must be class ids of shape.*apex labels"),
    "mmcv dense": (lambda: mmcv.sigmoid_focal_loss(X, T), "must be class ids"),
    "apex classes": (
        lambda: apex.focal_loss(X, IDS, ONE, 6, 0.25, 2.0),
        r"num_real_classes: must be in \[0, 5\].*got 6",
    ),
    "mmcv weight": (
        lambda: mmcv.sigmoid_focal_loss(X, LABELLED, 2.0, 0.25, KEPT),
        r"weight: must hold one value per class, shape \(5,\), got \(12,\)",
    ),
    "effdet legacy soft": (
        lambda: effdet.focal_loss_legacy(X, T * 0.5, 0.25, 2.0, 1.0),
        "targets: must be 0 or 1, effdet's legacy loss",
    ),
    "monai reduction": (
        lambda: monai.FocalLoss(reduction="Mean"),
        "reduction: must be 'none', 'mean' or 'sum', got 'Mean'",
    ),
    "monai soft": (lambda: monai.FocalLoss()(X, T * 0.5), "targets: must be 0 or 1, monai"),
    "monai softmax soft map": (
        lambda: monai.FocalLoss(use_softmax=True, reduction="none")(X, T * 0.5),
        "targets: must be 0 or 1, monai",
    ),
    "monai softmax map of two classes": (
        lambda: monai.FocalLoss(use_softmax=True, reduction="none")(X, torch.ones_like(X)),
        'with use_softmax=True and reduction="none" a voxel must be of one class',
    ),
    "monai weights": (
        lambda: monai.FocalLoss(weight=[1.0, 2.0])(X, T),
        "weight: must be one number, or one for each of the 5 channels",
    ),
    "monai negative weight": (lambda: monai.FocalLoss(weight=-1.0)(X, T), "weight: must not be negative"),
    "monai alphas": (
        lambda: monai.FocalLoss(alpha=[0.1, 0.2])(X, T),
        "alpha: a sequence must hold one value for each of the 5",
    ),
    "mmdet sum with avg_factor": (
        lambda: mmdet.FocalLoss(reduction="sum")(X, IDS, avg_factor=3),
        'avg_factor: cannot be used with reduction="sum"',
    ),
    "mmdet softmax": (lambda: mmdet.FocalLoss(use_sigmoid=False), "use_sigmoid: must be True"),
    "mmdet override": (lambda: mmdet.FocalLoss()(X, IDS, reduction_override="avg"), "reduction_override: must be"),
}


@pytest.mark.parametrize("name", DENSE_AND_IDS)
def test_what_the_library_would_not_take_is_refused(name: str) -> None:
    call, sentence = DENSE_AND_IDS[name]
    with pytest.raises(ValueError, match=sentence):
        call()


def test_monai_ignores_options_about_classes_where_there_is_one_and_says_so() -> None:
    loss, x, t = monai.FocalLoss(include_background=False, to_onehot_y=True), X[:, :1], T[:, :1]
    with pytest.warns(
        UserWarning, match="single channel prediction, `(to_onehot_y=True|include_background=False)` ignored"
    ):
        found = loss(x, t)
    assert torch.equal(found, monai.FocalLoss()(x, t))


def test_modules_show_what_they_were_given() -> None:
    assert "gamma=1.5, alpha=0.3, reduction=sum" in repr(mmcv.SigmoidFocalLoss(1.5, 0.3, reduction="sum"))


def test_a_name_that_torchvision_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'SSDHead'"):
        torchvision.SSDHead  # noqa: B018

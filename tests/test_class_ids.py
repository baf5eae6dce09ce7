# Owns: which rows are positive, background or ignored, wherever they stand among others and however their ids are
# stored.
# Must not know: formulas (dense targets are the oracle), bad ids (test_errors.py).
from __future__ import annotations

import focal_ext
import pytest
import torch
from axes import ID_DTYPES
from cases import IMPLEMENTATIONS, Implementation
from pairwise import pairwise

ROWS = 1100  # with one class two blocks of the kernel's 512 elements and a part of one


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
@pairwise(
    stored=ID_DTYPES, classes=(1, 2, 3, 80), ignored=("none", "another id", "a class", "-1", "C"), share=(0.01, 0.6)
)
def test_ids_are_what_they_say_wherever_they_stand(
    stored: str, classes: int, ignored: str, share: float, implementation: Implementation
) -> None:
    dtype = getattr(torch, stored)
    ignore_index = {"none": None, "another id": 100, "a class": classes - 1, "-1": -1, "C": classes}[ignored]
    rng = torch.Generator().manual_seed(classes)
    background = classes if not dtype.is_signed or ignore_index == -1 else -1
    common = background if background != ignore_index and background != 1 else 0  # 1 is no background of one class
    values = [
        *range(classes),
        *([classes] if classes > 1 else []),
        *([-1] if dtype.is_signed else []),
        *([] if ignore_index is None or (ignore_index < 0 and not dtype.is_signed) else [ignore_index]),
    ]
    ids = torch.tensor(values)[torch.randint(0, len(values), (ROWS,), generator=rng)].masked_fill(
        torch.rand(ROWS, generator=rng) > share, common
    )
    ids[[0, 7, 8, 511, 512, ROWS - 1]] = values[-1]
    kept = torch.ones(ROWS, dtype=torch.bool) if ignore_index is None else ids != ignore_index
    positive = kept & (ids >= 0) & (ids < classes)
    dense = torch.zeros(ROWS, classes)
    dense[positive, ids[positive]] = 1

    x = torch.randn(ROWS, classes, generator=rng).requires_grad_()
    want = focal_ext.reference.sigmoid_focal_loss(x, dense) * kept[:, None]
    (slope,) = torch.autograd.grad(want.sum(), x)
    for reduction, normalizer, divisor in (
        ("sum", None, 1),
        ("sum", "positives", max(1, int(positive.sum()))),
        ("mean", None, max(1, int(kept.sum()) * classes)),
    ):
        options = {"reduction": reduction, "normalizer": normalizer, "ignore_index": ignore_index}
        loss = implementation.module.sigmoid_focal_loss(x, ids.to(dtype), **options)
        (gradient,) = torch.autograd.grad(loss, x)
        # Both round a few times, differently; a row taken for another kind is off by all of it.
        torch.testing.assert_close(loss, want.sum() / divisor, rtol=1e-5, atol=0)
        torch.testing.assert_close(gradient, slope / divisor, rtol=1e-5, atol=1e-12)
        assert not gradient[~kept].any()

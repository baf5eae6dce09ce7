# Owns: that the code of docs/losses.md runs, and gives what the detectors that it names compute.
# Must not know: kernels, how a page is laid out beyond its tables and blocks.
from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import focal_ext
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

PAGE = (Path(__file__).resolve().parents[1] / "docs/losses.md").read_text()
SECTION = PAGE.split("## What detectors train with")[1].split("\n## ")[0]
ROWS = [line.split(" | ") for line in SECTION.splitlines() if line.startswith("| ") and line.endswith("` |")]
LINES = {row[0].removeprefix("| "): row[-1].removesuffix(" |").strip("`") for row in ROWS}
BLOCKS = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)

G = torch.Generator().manual_seed(0)
X = torch.randn(40, 5, generator=G, dtype=torch.float64) * 3
IDS = torch.randint(0, 5, (40,), generator=G).where(torch.rand(40, generator=G) < 0.4, -1)
IOUS = torch.rand(40, generator=G, dtype=torch.float64)
IOUS[IDS >= 0] *= torch.rand(int((IDS >= 0).sum()), generator=G) < 0.8  # some of 0
HARD = (IDS[:, None] == torch.arange(5)).double()
Q = HARD * IOUS[:, None]
HEAT = (
    torch.rand(2, 3, 4, 5, generator=G, dtype=torch.float64)
    .pow(4)
    .masked_fill(torch.rand(2, 3, 4, 5, generator=G) < 0.1, 1.0)
)
N = 7.0


def bce(x: Tensor, t: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(x, t, reduction="none")


def focal(x: Tensor) -> Tensor:
    p = x.sigmoid()
    return bce(x, HARD) * (p * (1 - HARD) + (1 - p) * HARD) ** 2 * (0.25 * HARD + 0.75 * (1 - HARD))


def rt_detr(x: Tensor, live: bool = False) -> Tensor:
    p = x.sigmoid() if live else x.sigmoid().detach()
    return bce(x, Q) * (0.75 * p**2 * (1 - HARD) + Q)


def deim(x: Tensor) -> Tensor:
    return bce(x, Q**1.5) * (x.sigmoid().detach() ** 1.5 * (1 - HARD) + HARD)


def lw_detr(x: Tensor) -> Tensor:
    p = x.sigmoid()
    t = torch.where(HARD == 1, (p**0.25 * Q**0.75).clamp(min=0.01), 0.0).detach()
    return bce(x, t) * torch.where(HARD == 1, 1.0, p**2)


def center_net(x: Tensor) -> Tensor:
    p = x.sigmoid()
    return torch.where(HEAT == 1, (1 - p) ** 2 * -F.logsigmoid(x), (1 - HEAT) ** 4 * p**2 * -F.logsigmoid(-x))


def timm(x: Tensor) -> Tensor:
    p = x.sigmoid()
    u = (p - 0.05).clamp(min=0)
    return -HARD * (1 - p).detach() * p.log() - (1 - HARD) * (u**4).detach() * (1 - u).log()


WANT: dict[str, Callable[[Tensor], Tensor]] = {
    "RetinaNet": lambda x: focal(x).sum() / N,
    "RT-DETR, RT-DETRv2": lambda x: rt_detr(x).sum() / N,
    "VFNet": lambda x: rt_detr(x, live=True).sum() / N,
    "DEIM": lambda x: deim(x).sum() / N,
    "LW-DETR": lambda x: lw_detr(x).sum() / N,
    "GFL": lambda x: (bce(x, Q) * (Q - x.sigmoid()).abs() ** 2).sum() / N,
    "YOLOv8": lambda x: bce(x, Q).sum() / N,
    "CornerNet": lambda x: center_net(x).sum() / (HEAT == 1).sum(),
    "multi-label": lambda x: timm(x).sum(),
}


def compare(code: str, want: Callable[[Tensor], Tensor], x: Tensor, **names: Any) -> None:
    leaf = x.clone().requires_grad_()
    given = {**vars(focal_ext), **names, "logits": leaf, "maps": leaf}
    if not code.startswith("loss"):
        code = f"loss = {code}"
    exec(compile(code, "docs/losses.md", "exec"), given)
    exact = want(leaf)
    assert torch.allclose(given["loss"], exact, rtol=1e-12)
    ours, theirs = (torch.autograd.grad(loss, leaf)[0] for loss in (given["loss"], exact))
    assert torch.allclose(ours, theirs, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("who", WANT)
def test_the_line_of_a_detector_is_its_loss(who: str) -> None:
    (code,) = (line for names, line in LINES.items() if names.startswith(who))
    x = (
        HEAT * 0 + torch.randn(HEAT.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        if who == "CornerNet"
        else X
    )
    compare(code, WANT[who], x, ids=IDS, ious=IOUS, n=N, heatmaps=HEAT, labels=HARD)


def test_every_line_is_compared() -> None:
    assert len(LINES) == len(WANT) and len(BLOCKS) == 4


def test_the_gradient_of_an_easy_negative_is_up_to_three_times_as_large_with_the_modulators() -> None:
    x = torch.full((1, 1), -8.0, dtype=torch.float64, requires_grad=True)
    pair = (torch.tensor([-1]), torch.zeros(1))
    live, constant = (
        torch.autograd.grad(focal_ext.varifocal_loss(x, pair, reduction="sum", modulator_gradient=flag), x)[0]
        for flag in (True, False)
    )
    p = x.detach().sigmoid()
    assert torch.allclose(live / constant, 1 + 2 * (1 - p) * -torch.log1p(-p) / p) and float(live / constant) > 2.99


def test_partial_labels_positive_weights_text_masks_and_drawn_classes() -> None:
    partial, positive, text, federated = BLOCKS
    x, ids = X.view(4, 10, 5), IDS.view(4, 10)
    labelled = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 1], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]) == 1
    compare(
        partial,
        lambda x: (focal(x.flatten(0, 1)).view(4, 10, 5) * labelled[:, None]).sum(),
        x,
        ids=ids,
        labelled=labelled,
    )
    w = torch.tensor([1.0, 2.0, 3.0, 0.5, 7.0], dtype=torch.float64)
    compare(positive, lambda x: F.binary_cross_entropy_with_logits(x, HARD, pos_weight=w), X, labels=HARD, w=w)
    seen = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]) == 1
    padded, tokens = x.masked_fill(~seen[:, None], -torch.inf), HARD.view(4, 10, 5) * seen[:, None]
    leaf = padded.clone().requires_grad_()
    given = {**vars(focal_ext), "logits": leaf, "tokens": tokens, "text": seen}
    exec(text, given)
    chosen = seen[:, None].expand_as(x)
    want = focal_ext.reference.sigmoid_focal_loss(x[chosen][:, None], tokens[chosen][:, None], reduction="sum")
    assert torch.allclose(given["loss"], want) and torch.autograd.grad(given["loss"], leaf)[0].isfinite().all()
    drawn = torch.tensor([True, False, True, True, False])
    compare(federated, lambda x: (bce(x, HARD) * drawn).sum() / 40, X, ids=IDS, drawn=drawn)


def test_parts_of_a_batch_add_up_to_its_gradient() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.split("## In a training loop")[1].split("\n## ")[0], re.DOTALL)
    weights = torch.randn(5, 5, generator=G, dtype=torch.float64).requires_grad_()
    parts = [(X[:30], IDS[:30]), (X[30:], IDS[30:])]
    exec(
        code, {"focal_ext": focal_ext, "torch": torch, "parts": parts, "num_classes": 5, "head": lambda x: x @ weights}
    )
    whole = focal_ext.sigmoid_focal_loss(X @ weights, IDS, reduction="sum", normalizer="positives")
    assert torch.allclose(weights.grad, torch.autograd.grad(whole, weights)[0], rtol=1e-12)

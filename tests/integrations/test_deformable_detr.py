# Owns: transformers' Deformable DETR, tiny and untrained, a few steps with its own classification loss and with the
# fused one.
# Must not know: formulas.
from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import focal_ext
import pytest
import torch
import transformers.loss.loss_deformable_detr as own
from focal_ext import compat
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection, ResNetConfig

STEPS = 3
# Float64 throughout, as for torchvision's detectors.
TOLERANCE = 1e-10


def model() -> nn.Module:
    torch.manual_seed(4)
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], out_features=["stage2", "stage3", "stage4"]
    )
    size = {
        "d_model": 32,
        "encoder_layers": 1,
        "decoder_layers": 2,
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
    }
    config = DeformableDetrConfig(
        backbone_config=backbone,
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        **size,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=12,
        num_labels=5,
        dropout=0.0,
        auxiliary_loss=True,
    )
    return DeformableDetrForObjectDetection(config).double().train()


def batch(step: int) -> dict[str, Any]:
    """Two images: two boxes, and none."""
    rng = torch.Generator().manual_seed(step)
    boxes = [
        torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]], dtype=torch.float64),
        torch.zeros(0, 4, dtype=torch.float64),
    ]
    labels = [
        {"class_labels": torch.tensor(ids, dtype=torch.int64), "boxes": b}
        for ids, b in zip(([1, 3 + step % 2], []), boxes)
    ]
    return {"pixel_values": torch.rand(2, 3, 64, 64, generator=rng, dtype=torch.float64), "labels": labels}


def train(context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> list[dict[str, Tensor]]:
    found, net = [], model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    for step in range(STEPS):
        with context():
            output = net(**batch(step))
        optimizer.zero_grad()
        output.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        found.append(
            {
                **{k: v.detach() for k, v in output.loss_dict.items()},
                "loss": output.loss.detach(),
                "gradients": gradients,
            }
        )
        optimizer.step()
    return found


def test_losses_and_gradients_of_every_step_are_transformers(assert_close: Callable[..., None]) -> None:
    for ours, theirs in zip(train(compat.transformers.patched), train(), strict=True):
        assert ours.keys() == theirs.keys() and {"loss_ce", "loss_ce_0"} <= theirs.keys()
        for name in theirs:
            assert_close("transformers Deformable DETR", ours[name], theirs[name], TOLERANCE)


def test_a_step_calls_the_fused_loss_for_each_decoder_layer_and_leaves_transformers_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, calls, fused = own.DeformableDetrImageLoss.loss_labels, [], focal_ext.losses.sigmoid_focal_loss
    monkeypatch.setattr(
        focal_ext.losses, "sigmoid_focal_loss", lambda *args, **options: calls.append(1) or fused(*args, **options)
    )
    with compat.detr.patched():
        model()(**batch(0))
    assert len(calls) == 2 and own.DeformableDetrImageLoss.loss_labels is original

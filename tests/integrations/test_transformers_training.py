# Owns: transformers' detectors, tiny and untrained, a few steps with their own classification losses and with the fused
# ones.
# Must not know: formulas. test_transformers.py has every loss alone.
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import focal_ext
import pytest
import torch
import transformers
from focal_ext import compat
from torch import Tensor, nn

STEPS, SIDE, CLASSES, QUERIES = 3, 64, 5, 12
ALONE = {"use_timm_backbone": False, "use_pretrained_backbone": False}
CONVOLUTIONS = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}
DETR = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_queries": QUERIES,
    "num_labels": CLASSES,
    "dropout": 0.0,
    "auxiliary_loss": True,
}
HYBRID = {  # encoders of RT-DETR and its successors
    "encoder_hidden_dim": 32,
    "encoder_in_channels": [8, 16, 16],
    "decoder_in_channels": [32, 32, 32],
    "num_denoising": 0,
}
TRANSFORMER = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": 16,
    "window_block_indices": [0],
    "out_indices": [1, 2],
    "mlp_ratio": 2,
}
LW_DETR = {
    "d_model": 32,
    "num_labels": CLASSES,
    "num_queries": QUERIES,
    "decoder_layers": 2,
    "group_detr": 2,
    "decoder_self_attention_heads": 2,
    "decoder_cross_attention_heads": 2,
    "decoder_ffn_dim": 16,
    "dropout": 0.0,
}


HEADS_OF_MASKS = {"encoder_attention_heads": 8, "decoder_attention_heads": 8}
# [CLS], three words of one token with a full stop each, [SEP], as BERT numbers them
TOKENS = [[101, 1500, 1012, 1600, 1012, 1700, 1012, 102]] * 2


def resnet(stages: int) -> Any:
    out = [f"stage{stage}" for stage in range(1, 5)][-stages:]
    return transformers.ResNetConfig(**CONVOLUTIONS, out_features=out)


def rt_detr_resnet() -> Any:
    return transformers.RTDetrResNetConfig(
        **CONVOLUTIONS, layer_type="basic", out_features=["stage2", "stage3", "stage4"]
    )


def grounding() -> dict[str, Any]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return {
        **{name: value for name, value in DETR.items() if name != "num_labels"},
        **ALONE,
        "backbone": None,
        "backbone_config": resnet(3),
        "text_config": transformers.BertConfig(**sizes, vocab_size=2000),
        "max_text_len": 16,
        "fusion_dropout": 0.0,
        "fusion_droppath": 0.0,
    }


class Row(NamedTuple):
    """`detector` is the name of its classes; `config` makes what differs from their defaults."""

    detector: str
    loss: str
    config: Callable[[], dict[str, Any]]
    dtype: torch.dtype = torch.float64
    kind: str = "ObjectDetection"
    labels: str = "boxes"  # or "text", "boxes and masks", "masks"


ROWS = [
    Row(
        "DeformableDetr",
        "sigmoid_focal_loss",
        lambda: {**DETR, **ALONE, "backbone": None, "backbone_config": resnet(3)},
    ),
    Row(
        "ConditionalDetr",
        "sigmoid_focal_loss",
        lambda: {**DETR, **ALONE, "backbone": None, "backbone_config": resnet(1)},
    ),
    Row(
        "DabDetr",
        "sigmoid_focal_loss",
        lambda: {**DETR, **ALONE, "backbone": None, "backbone_config": resnet(1), "hidden_size": 32},
    ),
    Row("RTDetr", "varifocal_loss", lambda: {**DETR, **ALONE, **HYBRID, "backbone_config": rt_detr_resnet()}),
    Row("RTDetrV2", "varifocal_loss", lambda: {**DETR, **ALONE, **HYBRID, "backbone_config": rt_detr_resnet()}),
    Row(
        "DFine",
        "varifocal_loss",
        lambda: {**DETR, **ALONE, **HYBRID, "backbone_config": rt_detr_resnet()},
        torch.float32,  # which its loss of boxes insists on
    ),
    Row(
        "Deimv2",
        "matchability_aware_loss",
        lambda: {**DETR, **ALONE, **HYBRID, "backbone_config": rt_detr_resnet()},
        torch.float32,  # which its loss of boxes insists on
    ),
    Row(
        "LwDetr",
        "iou_aware_bce_loss",
        lambda: {
            **LW_DETR,
            "backbone_config": transformers.LwDetrViTConfig(**TRANSFORMER, num_windows=4),
            "projector_scale_factors": [1.0],
            "c2f_num_blocks": 1,
        },
    ),
    Row(
        "RfDetr",
        "iou_aware_bce_loss",
        lambda: {**LW_DETR, "backbone_config": {"model_type": "rf_detr_dinov2", "num_windows": 1, **TRANSFORMER}},
    ),
    Row(
        "MaskFormer",
        "sigmoid_focal_loss",
        lambda: {
            "backbone_config": resnet(4),
            "decoder_config": transformers.DetrConfig(**DETR),
            "fpn_feature_size": 32,
            "mask_feature_size": 32,
            "num_labels": CLASSES,
        },
        kind="InstanceSegmentation",
        labels="masks",
    ),
    Row(
        "Mask2Former",
        "sigmoid_focal_loss",
        lambda: {
            "backbone_config": resnet(4),
            "feature_size": 32,
            "mask_feature_size": 32,
            "hidden_dim": 32,
            "encoder_feedforward_dim": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "dim_feedforward": 16,
            "num_queries": QUERIES,
            "num_labels": CLASSES,
            "train_num_points": 64,
        },
        kind="UniversalSegmentation",
        labels="masks",
    ),
    *(
        Row(
            detector,
            "sigmoid_focal_loss",
            lambda: {**DETR, **HEADS_OF_MASKS, **ALONE, "backbone": None, "backbone_config": resnet(4)},
            kind="Segmentation",
            labels="boxes and masks",
        )
        for detector in ("Detr", "ConditionalDetr")
    ),
    Row(
        "RfDetr",
        "sigmoid_focal_loss",
        lambda: {**LW_DETR, "backbone_config": {"model_type": "rf_detr_dinov2", "num_windows": 1, **TRANSFORMER}},
        torch.float32,  # which its loss of masks insists on
        kind="InstanceSegmentation",
        labels="boxes and masks",
    ),
    *(
        Row(detector, "sigmoid_focal_loss", grounding, labels="text")
        for detector in ("GroundingDino", "MMGroundingDino")
    ),
]
# In float32 transformers' own gradients move by 2e-5 to 8e-5 where the pixels move by one unit in the last place.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-4}
OF_TEXT = 1e-5  # their losses have tensors of float32 within; measured 9e-8
# Of SGD. In float32 larger steps would show how an optimizer multiplies roundings.
RATE = {torch.float64: 1e-3, torch.float32: 1e-7}


def model(row: Row) -> nn.Module:
    torch.manual_seed(4)
    config = getattr(transformers, f"{row.detector}Config")(**row.config())
    return getattr(transformers, f"{row.detector}For{row.kind}")(config).train()


def batch(row: Row, step: int) -> dict[str, Any]:
    """Two images: two objects, and none; where every image must have one, two and one."""
    rng = torch.Generator().manual_seed(step)
    given: dict[str, Any] = {"pixel_values": torch.rand(2, 3, SIDE, SIDE, generator=rng, dtype=row.dtype)}
    counts = (2, 0) if row.labels == "boxes" else (2, 1)
    classes, boxes = torch.tensor([1, 2]), torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.6, 0.6, 0.3, 0.3]], dtype=row.dtype)
    masks = [torch.rand(n, SIDE, SIDE, generator=rng).round().to(row.dtype) for n in counts]
    if row.labels == "masks":
        return {**given, "mask_labels": masks, "class_labels": [classes[:n] for n in counts]}
    given["labels"] = [{"class_labels": classes[:n], "boxes": boxes[:n]} for n in counts]
    if row.labels == "boxes and masks":
        given["labels"] = [{**label, "masks": mask} for label, mask in zip(given["labels"], masks)]
    if row.labels == "text":
        tokens = torch.tensor(TOKENS)
        given |= {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "token_type_ids": 0 * tokens}
    return given


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    """Also of the tensors that a model makes itself."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def train(row: Row, context: Callable[[], AbstractContextManager[Any]] = nullcontext) -> list[dict[str, Tensor]]:
    found, net = [], model(row)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE[row.dtype])
    for step in range(STEPS):
        torch.manual_seed(step)  # points of masks are drawn
        with context():
            output = net(**batch(row, step))
        optimizer.zero_grad()
        output.loss.backward()
        gradients = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        parts = {name: part.detach() for name, part in (getattr(output, "loss_dict", None) or {}).items()}
        found.append({**parts, "loss": output.loss.detach(), "gradients": gradients})
        optimizer.step()
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.detector} {row.kind}")
def test_losses_and_gradients_of_every_step_are_transformers(
    row: Row, assert_close: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, fused = [], getattr(focal_ext.losses, row.loss)
    monkeypatch.setattr(focal_ext.losses, row.loss, lambda *args, **options: calls.append(1) or fused(*args, **options))
    with default(row.dtype):
        theirs, before = train(row), len(calls)
        ours = train(row, compat.transformers.patched)
    assert not before and len(calls) >= STEPS  # one for each layer, of those that have a loss
    tolerance = OF_TEXT if row.labels == "text" else TOLERANCE[row.dtype]
    for own, other in zip(ours, theirs, strict=True):
        assert own.keys() == other.keys()
        # the losses of boxes that are nearly 0 in float32 are roundings alone
        for name in (name for name in other if row.dtype == torch.float64 or "ddf" not in name):
            assert_close(f"transformers {row.detector} {row.kind}, training", own[name], other[name], tolerance)

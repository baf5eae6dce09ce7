# Owns: what the arguments of a convolution fused with its loss may be, and every error about them.
# Must not know: formulas, autograd, kernels, chunks.
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._chunks import Geometry
from ._levels import check_classes, check_maps


def in_autocast_dtype(
    features: Sequence[Tensor], weight: Tensor, bias: Tensor | None
) -> tuple[Sequence[Tensor], Tensor, Tensor | None]:
    """As autocast casts the arguments of a convolution: all but float64, differentiably."""
    if not isinstance(weight, Tensor) or isinstance(features, Tensor) or not isinstance(features, Sequence):
        return features, weight, bias  # errors that are named later
    device = weight.device.type
    try:
        enabled = torch.is_autocast_enabled(device)
    # there is none on this device; is_autocast_available() says so too, but torch.compile of torch 2.10 cannot trace it
    except RuntimeError:
        enabled = False
    if not enabled:
        return features, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        is_cast = isinstance(tensor, Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float64
        return tensor.to(dtype) if is_cast else tensor

    return [cast(x) for x in features], cast(weight), bias if bias is None else cast(bias)


def check_features(features: Sequence[Tensor]) -> None:
    check_maps("features", features, "channels")
    if features[0].dtype == torch.float16:
        raise TypeError(
            "features: float16 is not supported, its gradients underflow before a GradScaler's factor reaches them;"
            " use bfloat16 (torch.autocast(device, torch.bfloat16)) or float32"
        )


def check_convolution(
    features: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    num_classes: int,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    memory_budget: int,
) -> Geometry:
    check_classes(num_classes)
    first = features[0]
    for name, tensor in (("conv_weight", weight), ("conv_bias", bias)):
        if tensor is None and name == "conv_bias":
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: must be a torch.Tensor, got {type(tensor).__name__}")
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"{name}: must be {first.dtype} on {first.device} as features are, got {tensor.dtype} on "
                f"{tensor.device}"
            )
    if weight.dim() != 4 or weight.shape[1] != first.shape[1] or not weight.numel() or weight.shape[0] % num_classes:
        raise ValueError(
            f"conv_weight: must have shape [anchors * {num_classes}, {first.shape[1]}, height, width] without groups, "
            f"got {tuple(weight.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"conv_bias: must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if isinstance(memory_budget, bool) or not isinstance(memory_budget, int):
        raise TypeError(
            "memory_budget: must be an integer, the bytes that a chunk's logits may take, got "
            f"{type(memory_budget).__name__}"
        )
    if memory_budget < 1:
        raise ValueError(f"memory_budget: must be at least 1 byte, got {memory_budget}")
    height, width = weight.shape[2:]
    return Geometry((height, width), _pair("stride", stride, 1), _pair("padding", padding, 0))


def _pair(name: str, value: int | tuple[int, int], least: int) -> tuple[int, int]:
    pair = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(pair) != 2 or not all(isinstance(v, int) and not isinstance(v, bool) for v in pair):
        raise TypeError(f"{name}: must be an integer or a pair of them, got {value!r}")
    if min(pair) < least:
        raise ValueError(f"{name}: must be at least {least}, got {value!r}")
    return pair[0], pair[1]

# Owns: the pass over all chunks of a convolution and its loss: forward, loss, both backwards, and what they add up to.
# Must not know: formulas, kernels, autograd's rules, how chunks are cut.
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from . import _arguments as arguments
from . import _factors as factors
from . import _native, _reference
from ._call import Call
from ._chunks import Chunk, Geometry, Window, chunks, window
from ._native import convolution_backward, ops
from ._levels import has_kernels_for_dtype, is_native_layout


class Head(NamedTuple):
    geometry: Geometry
    memory_budget: int


def _one_divisor(call: Call, dtype: torch.dtype) -> Call:
    """The call with a divisor that holds for every chunk: what is counted is counted over all levels and images, on the
    device."""
    if call.divisor not in (factors.BY_KEPT, factors.BY_POSITIVES):
        return call
    ids = _reference.widened(call.targets)
    kept = torch.ones_like(ids, dtype=torch.bool) if call.ignore_index is None else ids != call.ignore_index
    count = (
        kept.sum() * call.classes
        if call.divisor == factors.BY_KEPT
        else (kept & (ids >= 0) & (ids < call.classes)).sum()
    )
    return call._replace(normalizer=count.clamp(min=1).to(dtype), divisor=factors.BY_TENSOR)


class Sweep:
    """One pass over all chunks: adds up the loss and the gradients that are wanted, of weight, bias and each level of
    the features."""

    def __init__(self, head: Head, call: Call, weight: Tensor, bias: Tensor | None, wanted: Sequence[bool]) -> None:
        self.dtype = arguments.accumulation_dtype(weight.dtype)
        self.head, self.call, self.weight, self.bias = head, _one_divisor(call, self.dtype), weight, bias
        self.wanted, self.one = wanted, torch.ones((), dtype=self.dtype, device=weight.device)
        self.weight_gradient = torch.zeros_like(weight, dtype=self.dtype) if wanted[0] else None
        self.bias_gradient = torch.zeros_like(bias, dtype=self.dtype) if bias is not None and wanted[1] else None
        self.feature_gradients: list[Tensor | None] = []
        self.losses: list[Tensor] = []

    def gradients(self) -> list[Tensor | None]:
        added_up = (self.weight_gradient, self.bias_gradient)
        return [*(None if g is None else g.to(self.weight.dtype) for g in added_up), *self.feature_gradients]

    def run(self, features: Sequence[Tensor]) -> Tensor:
        images, classes, offset = len(features[0]), self.call.classes, 0
        anchors = self.weight.shape[0] // classes
        for level, x in enumerate(features):
            height, width = self.head.geometry.output(*x.shape[2:])
            count = height * width * anchors
            labels = self.call.targets[:, offset : offset + count].unflatten(1, (height, width, anchors))
            weights = self.call.weight
            if weights is not None and weights.shape[1] != 1:
                weights = weights[:, offset : offset + count].unflatten(1, (height, width, anchors))
            gradient = torch.zeros_like(x, dtype=self.dtype) if self.wanted[2 + level] else None
            for chunk in chunks(images, anchors, height, classes * width * x.element_size(), self.head.memory_budget):
                self._add(
                    chunk, x, gradient, self._call_of(chunk, labels, weights), whole=chunk.rows == slice(0, height)
                )
            self.feature_gradients.append(None if gradient is None else gradient.to(x.dtype))
            offset += count
        return (
            torch.stack(self.losses).sum(dtype=torch.float64).to(self.dtype)
            if self.losses
            else torch.zeros_like(self.one)
        )

    def _call_of(self, chunk: Chunk, labels: Tensor, weights: Tensor | None) -> Call:
        def of_chunk(values: Tensor) -> Tensor:
            part = (
                values[chunk.images]
                if values.dim() == 2
                else values[chunk.images, chunk.rows, :, chunk.anchors].flatten(1)
            )
            return part.contiguous()

        return self.call._replace(targets=of_chunk(labels), weight=None if weights is None else of_chunk(weights))

    def _add(self, chunk: Chunk, x: Tensor, gradient: Tensor | None, call: Call, whole: bool) -> None:
        """Convolution, loss and both backwards of one chunk."""
        kernel, stride, padding = self.head.geometry
        inputs, view = x[chunk.images], Window(slice(None), 0, 0)
        if not whole:
            view = window(chunk.rows, x.shape[2], kernel[0], stride[0], padding[0])
            inputs, padding = F.pad(inputs[:, :, view.rows], (0, 0, view.above, view.below)), (0, padding[1])
        rows = slice(chunk.anchors.start * call.classes, chunk.anchors.stop * call.classes)
        weight, bias = self.weight[rows], None if self.bias is None else self.bias[rows]
        logits = torch.conv2d(inputs, weight, bias, stride, padding)
        logits = logits if is_native_layout(logits) else logits.contiguous()
        mask = [gradient is not None, self.weight_gradient is not None, self.bias_gradient is not None]
        self.losses.append(self._loss_over(logits, call, any(mask)))
        if not any(mask):
            return
        by_input, by_weight, by_bias = convolution_backward(
            logits, inputs, weight, [len(weight)], stride, padding, (1, 1), False, (0, 0), 1, mask
        )
        if gradient is not None:
            gradient[chunk.images, :, view.rows].add_(by_input[:, :, view.above : by_input.shape[2] - view.below])
        if self.weight_gradient is not None:
            self.weight_gradient[rows].add_(by_weight)
        if self.bias_gradient is not None:
            self.bias_gradient[rows].add_(by_bias)

    def _loss_over(self, logits: Tensor, call: Call, with_gradient: bool) -> Tensor:
        """The loss of a chunk; its gradient, if wanted, replaces the logits."""
        if _native.runs_on(logits.device) and has_kernels_for_dtype(logits):
            if not with_gradient:
                return ops.pyramid_loss([logits], *call)
            loss = torch.zeros_like(self.one)
            ops.pyramid_gradient_([logits], *call, self.one, loss)
            return loss
        with torch.set_grad_enabled(with_gradient):
            loss = _reference.compute([logits.requires_grad_(with_gradient)], call, "sum")
            derivative = torch.autograd.grad(loss, logits)[0] if with_gradient else None
        logits.requires_grad_(False)
        if derivative is not None:
            logits.copy_(derivative)
        return loss.detach()

# Owns: the library's ops, by the CUDA kernels on the device made of a CPU: what csrc/ops.cpp is to the library.
# Must not know: formulas, autograd, what the right results are.
from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from focal_ext._arguments import as_bytes
from focal_ext._call import Call, spec_of
from torch import Tensor

SCALARS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # the numbers of csrc/problem.h
IDS = (torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32, torch.uint64, torch.int64)
DENSE_U8, DENSE_SCALAR, DENSE_ACC = range(8, 11)


FIELDS = len(Call._fields)


def accumulation(inputs: Tensor) -> torch.dtype:
    return torch.float64 if inputs.dtype == torch.float64 else torch.float32


def is_wide(inputs: Tensor, targets: Tensor) -> bool:
    """Dense integers that the argument rules leave to the CPU's kernels and make bytes for a device's."""
    return targets.dim() == inputs.dim() and targets.dtype in (torch.int8, torch.int16, torch.int32, torch.int64)


def target_kind(inputs: Tensor, targets: Tensor) -> int:
    if targets.dim() < inputs.dim():
        return IDS.index(targets.dtype)
    if targets.dtype in (torch.bool, torch.uint8):
        return DENSE_U8
    return DENSE_SCALAR if targets.dtype == inputs.dtype else DENSE_ACC


def unwritten(shape: Any, dtype: torch.dtype) -> Tensor:
    """A result nobody has written yet: NaN."""
    return torch.full(shape, torch.nan, dtype=dtype)


def batch_of(logits: Tensor, call: Sequence[Any]) -> torch.Size:
    return logits.shape[: Call(*call).batch_dims]


class HostOps:
    """Functions of the names and signatures of torch.ops.focal_ext."""

    def __init__(self, module: ModuleType, max_blocks: int | None = None, least_tiles: int | None = None) -> None:
        self.module, self.max_blocks, self.least_tiles = (
            module,
            max_blocks or module.MAX_BLOCKS,
            least_tiles or module.LEAST_TILES,
        )

    def launch(self, fields: dict[str, Any], levels: Sequence[dict[str, Any]] | None = None) -> None:
        """One call. Keys are the fields of Problem, and of each Level of a Pyramid; tensors are its memory, what is
        missing is null."""
        plain = [
            {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in each.items()}
            for each in (fields, *(levels or ()))
        ]
        if levels is None:
            self.module.run(plain[0], self.max_blocks, self.least_tiles)
        else:
            self.module.run_pyramid(plain[0], plain[1:], self.max_blocks)

    def plain(
        self, logits: Tensor, call: Call, rows: int, classes: int, grad_output: Tensor | None, **memory: Tensor | None
    ) -> dict[str, Any]:
        """The fields that logits in rows and levels have in common."""
        upstream = None if grad_output is None else grad_output.contiguous()
        per_group = upstream is not None and call.batch_dims > 0 and upstream.dim() > 0
        assert upstream is None or upstream.dtype == (
            logits.dtype if upstream.dim() and not per_group else accumulation(logits)
        )
        tensors = {**dict(zip(Call._fields, call[:5])), "grad_output": upstream, **memory}
        tensors["divisor_tensor"] = tensors.pop("normalizer")
        assert all(t is None or t.is_contiguous() for t in tensors.values())
        fields: dict[str, Any] = {name: t for name, t in tensors.items() if t is not None}
        fields |= {
            "scalar": SCALARS.index(logits.dtype),
            "rows": rows,
            "classes": classes,
            "loss_id": call.loss,
            "divisor": call.divisor,
        }
        fields |= {"has_ignore_index": call.ignore_index is not None, "ignore_index": call.ignore_index or 0}
        fields |= dict(zip(("alpha_positive", "alpha_negative", "divisor_value"), call.numbers))
        fields |= {f"parameter_{i}": number for i, number in enumerate((*call.numbers[3:], 0.0, 0.0, 0.0, 0.0)[:4])}
        fields |= {
            "groups": logits.shape[: call.batch_dims].numel(),
            "divisor_per_group": call.normalizer is not None and call.normalizer.dim() > 0,
        }
        fields |= {
            "grad_output_per_group": per_group,
            "grad_output_per_element": upstream is not None and upstream.dim() > 0 and not per_group,
        }
        return fields | {"weight_row_stride": 0, "weight_class_stride": 0}

    def run(
        self, inputs: Tensor, call: tuple[Any, ...], grad_output: Tensor | None = None, **results: Tensor | None
    ) -> None:
        call = Call(*call)
        if is_wide(inputs, call.targets):
            call = call._replace(**dict(zip(("targets", "ignore_index"), as_bytes(call.targets, call.ignore_index))))
        logits, weight = inputs.contiguous(), call.weight
        fields = self.plain(
            logits, call, logits.shape[:-1].numel(), logits.shape[-1], grad_output, inputs=logits, **results
        )
        fields["target"] = target_kind(logits, call.targets)
        if weight is not None:
            fields |= {
                "weight_row_stride": 0 if weight.shape[0] == 1 else weight.shape[1],
                "weight_class_stride": int(weight.shape[1] != 1),
            }
        self.launch(fields)

    def loss(self, inputs: Tensor, *call: Any) -> Tensor:
        loss = unwritten(batch_of(inputs, call), accumulation(inputs))
        self.run(inputs, call, loss=loss)
        return loss

    def loss_and_gradient(self, inputs: Tensor, *call: Any) -> tuple[Tensor, Tensor]:
        loss, gradient = unwritten(batch_of(inputs, call), accumulation(inputs)), unwritten(inputs.shape, inputs.dtype)
        self.run(inputs, call, loss=loss, gradient=gradient)
        return loss, gradient

    def loss_map(self, inputs: Tensor, *call: Any) -> Tensor:
        loss_map = unwritten(inputs.shape[:-1] if spec_of(Call(*call)).is_per_row else inputs.shape, inputs.dtype)
        self.run(inputs, call, loss_map=loss_map)
        return loss_map

    def gradient(self, inputs: Tensor, *call_and_grad_output: Any) -> Tensor:
        *call, grad_output = call_and_grad_output
        gradient = unwritten(inputs.shape, inputs.dtype)
        self.run(inputs, tuple(call), grad_output, gradient=gradient)
        return gradient

    def gradient_(self, inputs: Tensor, *call_and_results: Any) -> None:
        *call, grad_output, loss = call_and_results if len(call_and_results) > FIELDS + 1 else (*call_and_results, None)
        self.run(inputs, tuple(call), grad_output, gradient=inputs, loss=loss)

    def scale_(self, gradient: Tensor, factor: Tensor) -> None:
        assert gradient.is_contiguous() and factor.dtype == accumulation(gradient)
        assert factor.is_contiguous() and factor.shape == gradient.shape[: factor.dim()]
        self.module.scale(
            gradient.data_ptr(),
            SCALARS.index(gradient.dtype),
            gradient.numel(),
            factor.data_ptr(),
            factor.numel(),
            self.max_blocks,
        )

    def run_pyramid(
        self,
        levels: Sequence[Tensor],
        call: tuple[Any, ...],
        gradients: Sequence[Tensor] | None = None,
        grad_output: Tensor | None = None,
        **results: Tensor | None,
    ) -> None:
        call = Call(*call)
        images, channels = levels[0].shape[:2]
        fields = self.plain(levels[0], call, call.targets.numel(), call.classes, grad_output, **results)
        fields["target"] = IDS.index(call.targets.dtype)
        fields |= {
            "weight_per_image": call.weight is not None and call.weight.shape != call.targets.shape,
            "images": images,
            "anchors": channels // call.classes,
        }
        plain = []
        for i, level in enumerate(levels):
            planes = level.is_contiguous()
            assert planes or level.is_contiguous(memory_format=torch.channels_last)
            plain.append({"inputs": level, "positions": level.shape[2:].numel(), "channels_last": not planes})
            if gradients is not None:
                assert gradients[i].stride() == level.stride()
                plain[-1]["gradient"] = gradients[i]
        self.launch(fields, plain)

    def pyramid_loss(self, levels: Sequence[Tensor], *call: Any) -> Tensor:
        loss = unwritten(batch_of(levels[0], call), accumulation(levels[0]))
        self.run_pyramid(levels, call, loss=loss)
        return loss

    def pyramid_loss_and_gradient(self, levels: Sequence[Tensor], *call: Any) -> tuple[Tensor, list[Tensor]]:
        loss, gradients = (
            unwritten(batch_of(levels[0], call), accumulation(levels[0])),
            [torch.full_like(level, torch.nan) for level in levels],
        )
        self.run_pyramid(levels, call, gradients, loss=loss)
        return loss, gradients

    def pyramid_loss_map(self, levels: Sequence[Tensor], *call: Any) -> Tensor:
        loss_map = unwritten(Call(*call).targets.shape, levels[0].dtype)  # of losses of rows
        self.run_pyramid(levels, call, loss_map=loss_map)
        return loss_map

    def pyramid_gradient(self, levels: Sequence[Tensor], *call_and_grad_output: Any) -> list[Tensor]:
        *call, grad_output = call_and_grad_output
        gradients = [torch.full_like(level, torch.nan) for level in levels]
        self.run_pyramid(levels, tuple(call), gradients, grad_output)
        return gradients

    def pyramid_gradient_(self, levels: Sequence[Tensor], *call_and_results: Any) -> None:
        *call, grad_output, loss = call_and_results if len(call_and_results) > FIELDS + 1 else (*call_and_results, None)
        self.run_pyramid(levels, tuple(call), levels, grad_output, loss=loss)

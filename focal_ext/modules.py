# Owns: the losses as torch.nn modules, and the initialisation that goes with them.
# Must not know: kernels, autograd, argument rules.
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from . import losses
from ._arguments import Alpha, Normalizer, Targets


class _LossModule(nn.Module):
    """Keeps the options of a loss function, tensors as buffers or parameters."""

    function: ClassVar[Callable[..., Tensor]]
    no_targets: ClassVar[Targets] = torch.empty(0, dtype=torch.int64)

    def __init__(self, **options: Any) -> None:
        super().__init__()
        # Wrong numbers and words are errors here already; tensors and lists have to wait for logits to be compared with.
        plain = {name: value for name, value in options.items() if value is None or isinstance(value, (int, float, str))}
        type(self).function.__wrapped__(torch.empty(0, 0), self.no_targets, **plain)  # type: ignore[attr-defined]
        self._options = tuple(options)
        for name, value in options.items():
            if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
                self.register_buffer(name, value, persistent=False)
            else:
                setattr(self, name, value)

    def forward(self, inputs: Tensor, targets: Targets, weight: Tensor | None = None, normalizer: Normalizer = None) -> Tensor:
        options = {name: getattr(self, name) for name in self._options}
        given = {"weight": weight, "normalizer": normalizer}
        options.update((name, value) for name, value in given.items() if value is not None)
        return type(self).function(inputs, targets, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self._options if name != "weight")


class SigmoidFocalLoss(_LossModule):
    """:func:`focal_ext.sigmoid_focal_loss` as a module, with the same arguments and defaults.

    Tensors among them move with the module, a Parameter is trained with it. What changes from step to step, ``weight`` and
    ``normalizer``, may be given to forward instead.

    Example:
        >>> criterion = SigmoidFocalLoss(reduction="sum", normalizer="positives")
        >>> criterion(torch.randn(8, 80, requires_grad=True), torch.randint(-1, 80, (8,))).backward()
    """

    function = staticmethod(losses.sigmoid_focal_loss)

    def __init__(
        self,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -2,
        label_smoothing: float = 0.0,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, normalizer=normalizer, weight=weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, overwrite_inputs=overwrite_inputs,
        )


class QualityFocalLoss(_LossModule):
    """:func:`focal_ext.quality_focal_loss` as a module, with the same arguments and defaults; see :class:`SigmoidFocalLoss`."""

    no_targets = (torch.empty(0, dtype=torch.int64), torch.empty(0))
    function = staticmethod(losses.quality_focal_loss)

    def __init__(
        self,
        beta: float = 2.0,
        reduction: str = "none",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -2,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__(
            beta=beta, reduction=reduction, normalizer=normalizer, weight=weight, ignore_index=ignore_index,
            overwrite_inputs=overwrite_inputs,
        )


class VarifocalLoss(_LossModule):
    """:func:`focal_ext.varifocal_loss` as a module, with the same arguments and defaults; see :class:`SigmoidFocalLoss`."""

    no_targets = (torch.empty(0, dtype=torch.int64), torch.empty(0))
    function = staticmethod(losses.varifocal_loss)

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        reduction: str = "none",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -2,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, normalizer=normalizer, weight=weight, ignore_index=ignore_index,
            overwrite_inputs=overwrite_inputs,
        )


class AsymmetricLoss(_LossModule):
    """:func:`focal_ext.asymmetric_loss` as a module, with the same arguments and defaults; see :class:`SigmoidFocalLoss`."""

    function = staticmethod(losses.asymmetric_loss)

    def __init__(
        self,
        gamma_neg: float = 4.0,
        gamma_pos: float = 1.0,
        clip: float | None = 0.05,
        reduction: str = "none",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -2,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__(
            gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction=reduction, normalizer=normalizer, weight=weight,
            ignore_index=ignore_index, overwrite_inputs=overwrite_inputs,
        )


class SoftmaxFocalLoss(_LossModule):
    """:func:`focal_ext.softmax_focal_loss` as a module, with the same arguments and defaults; see :class:`SigmoidFocalLoss`."""

    function = staticmethod(losses.softmax_focal_loss)

    def __init__(
        self,
        alpha: Alpha = None,
        gamma: float = 2.0,
        reduction: str = "mean",
        *,
        normalizer: Normalizer = None,
        weight: Tensor | None = None,
        ignore_index: int | None = -100,
        label_smoothing: float = 0.0,
        overwrite_inputs: bool = False,
    ) -> None:
        super().__init__(
            alpha=alpha, gamma=gamma, reduction=reduction, normalizer=normalizer, weight=weight, ignore_index=ignore_index,
            label_smoothing=label_smoothing, overwrite_inputs=overwrite_inputs,
        )


def init_prior_(conv: nn.Module, prior: float = 0.01) -> nn.Module:
    """Sets the bias of the last classification layer in place so that every score starts at ``prior`` (Lin et al. 2017, sec. 4.1).

    Args:
        conv: a layer with a bias, such as nn.Conv2d or nn.Linear; its weight is left alone.
        prior: the probability, in (0, 1), of each class at each anchor before training; 0.01 gives the bias -4.59511985.

    Returns:
        The layer.
    """
    if not 0 < prior < 1:
        raise ValueError(f"prior: must be in (0, 1), got {prior}")
    bias = getattr(conv, "bias", None)
    if not isinstance(bias, Tensor):
        raise ValueError(f"conv: must have a bias to hold the prior, got {type(conv).__name__} without one; build it with bias=True")
    with torch.no_grad():
        bias.fill_(-math.log((1 - prior) / prior))
    return conv

# Owns: the last convolution of a detector and its focal loss in one, chunk by chunk, so that the logits never exist as
# a whole.
# Must not know: formulas, kernels, chunks.
from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from . import _arguments as arguments
from . import _autograd, _debug, _native
from ._arguments import Alpha, Normalizer
from ._call import Call, check, tensors_of
from ._head_arguments import check_convolution, check_features, in_autocast_dtype
from ._levels import Levels, Maps, check_maps, in_order
from ._run import check_targets_where_nan, run
from ._sweep import Head, Sweep
from ._torch_private import outside_old_graphs
from .losses import sigmoid_focal
from .modules import init_prior_

if _native.available:
    from . import _head_op

# One anchor of 1203 classes (LVIS) on the finest level of an 800 x 1344 image takes 77 MiB in float32.
MEMORY_BUDGET = 80 * 2**20


@outside_old_graphs
@arguments.quiet_under_jit_trace
def conv_sigmoid_focal_loss(
    features: Maps,
    conv_weight: Tensor,
    conv_bias: Tensor | None,
    targets: Tensor | Sequence[Tensor],
    num_classes: int,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 1,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    label_smoothing: float = 0.0,
    memory_budget: int = MEMORY_BUDGET,
) -> Tensor:
    """The last convolution of a detection head and its sigmoid focal loss together, without the logits.

    Equal, to rounding, to ``pyramid.sigmoid_focal_loss([conv2d(x, conv_weight, conv_bias, stride, padding) for x in
    features], targets, ...)``. It convolves some anchors of some images at a time, computes loss and gradient in place
    over their logits, runs the convolution's backward at once and drops the logits. Nothing is computed twice. Only
    gradients are kept for backward: those of the features in their dtype, those of weight and bias added up in float32.

    Args:
        features: maps [B, C_in, H_l, W_l] of each level, a list or a dict; float32, bfloat16 or float64.
        conv_weight: [A * K, C_in, height, width] of the features' dtype, any kernel size; output channel ``a * K + k``.
        conv_bias: [A * K] or None.
        targets: class ids, as in :func:`focal_ext.pyramid.sigmoid_focal_loss`, on the positions of the convolution's
            output.
        num_classes: K.
        alpha, gamma, reduction, normalizer, weight, ignore_index, label_smoothing: as in
            :func:`focal_ext.pyramid.sigmoid_focal_loss`. "mean" and "positives" count over all levels and images.
        stride, padding: of the convolution, one number or (height, width).
        memory_budget: bytes that the logits of a chunk may take. Several anchors and images share a chunk while they
            fit; an anchor that does not fit alone is cut into strips of rows, which overlap in the input.

    Returns:
        The loss, a float32 (float64 for float64) number. Once differentiable.

    Raises:
        TypeError: also for float16, whose gradients underflow before a GradScaler's factor reaches them.
        ValueError: as in :func:`focal_ext.pyramid.sigmoid_focal_loss`, and where shapes of features, conv_weight and
            conv_bias disagree.

    Under autocast to bfloat16 features, weight and bias are cast as a convolution casts them. torch.compile sees one
    op. Under torch.func and forward-mode AD, where weight, alpha or normalizer want a gradient, and in graphs for
    devices without kernels, the plain convolution and loss run instead.

    Example:
        >>> head, labels = torch.nn.Conv2d(16, 9 * 80, 3, padding=1), torch.full((2, 9 * (64 + 16)), -1)
        >>> features = [torch.randn(2, 16, s, s, requires_grad=True) for s in (8, 4)]
        >>> conv_sigmoid_focal_loss(features, head.weight, head.bias, labels, 80, normalizer="positives").backward()
    """
    features, conv_weight, conv_bias = in_autocast_dtype(in_order(features), conv_weight, conv_bias)
    check_features(features)
    geometry = check_convolution(features, conv_weight, conv_bias, num_classes, stride, padding, memory_budget)
    anchors = conv_weight.shape[0] // num_classes
    sizes = [geometry.output(*x.shape[2:]) for x in features]
    counts = [height * width * anchors for height, width in sizes]
    levels = Levels(features, num_classes, counts)
    shared = reduction, normalizer, weight, ignore_index, False, -1, 0
    request = check(sigmoid_focal.SPEC, levels, targets, alpha, shared, gamma, label_smoothing, True)
    if request.call.scores is not None:
        raise TypeError(
            "targets: must be class ids, got a pair (ids, scores); apply the convolution and pass its maps to "
            "focal_ext.pyramid.sigmoid_focal_loss"
        )
    call, head = request.call, Head(geometry, memory_budget)
    return _dispatch(head, call, conv_weight, conv_bias, features)


def _dispatch(head: Head, call: Call, weight: Tensor, bias: Tensor | None, features: Sequence[Tensor]) -> Tensor:
    if _debug.enabled:
        call = _debug.with_checked_targets(features, call)
    given, compiling = (weight, bias, *features), torch.compiler.is_compiling()
    plain = _native.runs_on(weight.device) if compiling else arguments.are_plain((*given, *tensors_of(call)))
    if _autograd.is_watched_by_autograd() or _autograd.wants_more(call) or not plain:
        maps = [torch.conv2d(x, weight, bias, head.geometry.stride, head.geometry.padding) for x in features]
        return run(tuple(maps), call, "sum", False)
    if compiling:
        loss = _head_op.loss_of(head, call, weight, bias, features)
    elif torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        loss = _Fused.apply(head, call, *given)
    else:
        loss = Sweep(head, call, weight, bias, [False] * len(given)).run(features)
    check_targets_where_nan(loss, features, call)
    return loss


class _Fused(torch.autograd.Function):
    """Forward computes every gradient that is wanted; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, head: Head, call: Call, weight: Tensor, bias: Tensor | None, *features: Tensor) -> Tensor:
        sweep = Sweep(head, call, weight, bias, ctx.needs_input_grad[2:])
        loss = sweep.run(features)
        ctx.save_for_backward(*sweep.gradients())
        return loss

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "conv_sigmoid_focal_loss is once differentiable; for create_graph=True convolve first and use "
                "focal_ext.pyramid.sigmoid_focal_loss"
            )
        return None, None, *_autograd.scaled(ctx.saved_tensors, grad_output)


class FusedFocalHead(nn.Module):
    """The last convolution of a detection head, which given targets returns the loss without the logits.

    A convolution from in_channels to num_anchors * num_classes channels with the stride 1 and a padding that keeps the
    size. Its parameters are ``weight`` and ``bias``, so that its state dict is that of a torch.nn.Conv2d. Weights start
    at N(0, 0.01), biases so that every score is ``prior`` (Lin et al. 2017).

    forward(features) returns the logits [B, A * K, H_l, W_l] of each level, forward(features, targets) the loss of
    :func:`conv_sigmoid_focal_loss`, in training and in eval mode alike: a validation loss under torch.no_grad() stores
    no logits either. ``weight``, of images or anchors, and ``normalizer`` may be given with targets.

    Args:
        in_channels: of the features.
        num_anchors: anchors at each position.
        num_classes: classes of each anchor.
        prior: every score before training, in (0, 1).
        kernel_size: odd; the padding is half of it.
        alpha, gamma, reduction, normalizer, ignore_index, label_smoothing, memory_budget: as in
        :func:`conv_sigmoid_focal_loss`.

    Example:
        >>> head = FusedFocalHead(16, 9, 80, normalizer="positives")
        >>> features = [torch.randn(2, 16, s, s) for s in (8, 4)]
        >>> head(features, torch.full((2, 9 * (64 + 16)), -1)).backward()
        >>> logits = head(features)
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        prior: float = 0.01,
        *,
        kernel_size: int = 3,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        reduction: str = "sum",
        normalizer: Normalizer = None,
        ignore_index: int | None = -2,
        label_smoothing: float = 0.0,
        memory_budget: int = MEMORY_BUDGET,
    ) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size: must be odd for a padding that keeps the size, got {kernel_size}")
        self.weight = nn.Parameter(torch.empty(num_anchors * num_classes, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(num_anchors * num_classes))
        nn.init.normal_(self.weight, std=0.01)
        init_prior_(self, prior)
        self.num_classes, self.padding = num_classes, kernel_size // 2
        self.loss_options: dict[str, Any] = {
            "alpha": alpha,
            "gamma": gamma,
            "reduction": reduction,
            "normalizer": normalizer,
            "ignore_index": ignore_index,
            "label_smoothing": label_smoothing,
            "memory_budget": memory_budget,
        }

    @overload
    def forward(self, features: Maps, targets: None = None) -> list[Tensor]: ...
    @overload
    def forward(
        self,
        features: Maps,
        targets: Tensor | Sequence[Tensor],
        weight: Tensor | None = None,
        normalizer: Normalizer = None,
    ) -> Tensor: ...
    def forward(
        self,
        features: Maps,
        targets: Tensor | Sequence[Tensor] | None = None,
        weight: Tensor | None = None,
        normalizer: Normalizer = None,
    ) -> Tensor | list[Tensor]:
        features = in_order(features)
        if targets is None:
            if weight is not None or normalizer is not None:
                raise ValueError("targets: needed with weight or normalizer, which the logits do not have")
            check_maps("features", features, "channels")
            return [nn.functional.conv2d(x, self.weight, self.bias, padding=self.padding) for x in features]
        options = self.loss_options if normalizer is None else {**self.loss_options, "normalizer": normalizer}
        return conv_sigmoid_focal_loss(
            features, self.weight, self.bias, targets, self.num_classes, padding=self.padding, weight=weight, **options
        )

    def extra_repr(self) -> str:
        outputs, inputs, size = self.weight.shape[:3]
        sizes = f"{inputs}, {outputs // self.num_classes}, {self.num_classes}, kernel_size={size}"
        return ", ".join([sizes, *(f"{name}={value!r}" for name, value in self.loss_options.items())])

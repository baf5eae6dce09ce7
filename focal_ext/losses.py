# Owns: the public functions, one per loss.
# Must not know: kernels, autograd.
from __future__ import annotations

import math

from torch import Tensor

from . import _arguments as arguments
from . import _autograd, _native, reference
from ._arguments import Alpha, Normalizer


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
) -> Tensor:
    """Sigmoid focal loss of every anchor and class, fused (Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5).

    Equivalent to ``torchvision.ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)`` for dense targets, and to the same
    with a one-hot of ``targets`` for class ids. Loss and gradient take one pass over the logits.

    Args:
        inputs: logits of shape (..., C); float32, bfloat16, float16 or float64. Half types compute in float32. Any strides: rows in
            another order are read in place, other layouts cost one copy.
        targets: read by rank. Of shape ``inputs.shape[:-1]``: class ids of any integer dtype, where [0, C) is a positive, -1 or C
            background. Of shape ``inputs.shape``: dense probabilities in [0, 1] (float, bool or 0/1 integers; values are not checked).
        alpha: factor of positives, 1 - alpha that of negatives. None or -1: both 1. A tensor or sequence of C floats: alpha_c for
            positives of class c, 1 - alpha_c for its negatives.
        gamma: focusing exponent, finite and >= 0. 0 is (balanced) cross entropy.
        reduction: "none" returns the loss of each logit in the inputs' dtype; "sum" and "mean" return a float32 (float64 for float64)
            number, "mean" over all logits that are not ignored.
        normalizer: with "sum" only, what the sum is divided by: a float > 0, a 0-d tensor on the inputs' device (used as it is), or
            "positives", the number of positive class ids, at least 1, counted on the device.
        weight: multiplies the loss of each logit; broadcasts to inputs. One value per row is a column: ``weight[:, None]``.
        ignore_index: class id that is skipped, tested before all others; such rows give exactly 0 and a gradient of 0. None: no such id.
        overwrite_inputs: backward writes the gradient over the logits, which saves a tensor of their size. They stay readable until
            then. Without effect when no gradient is needed, under torch.compile and torch.func. Backward runs once.

    Returns:
        The loss; 0 for empty inputs and when every row is ignored.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, value, device or combination. A class id out of range raises on CPU in eager mode; on CUDA and in
            compiled graphs it makes loss and gradient of its row NaN, because reading it would stall the device.

    Example:
        >>> logits = torch.randn(8, 80, requires_grad=True)
        >>> labels = torch.tensor([3, -1, -1, 80, -2, -1, 17, -1])  # two positives, one ignored, the rest background
        >>> sigmoid_focal_loss(logits, labels, reduction="sum", normalizer="positives").backward()
    """
    call = arguments.check(inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs)
    classes = inputs.shape[-1]
    readable = targets.dim() < inputs.dim() and arguments.values_are_readable(inputs, targets)
    if readable and (reduction == "none" or not _native.available or classes == 0):
        _check_ids(call, classes)
    loss = _autograd.dispatch(inputs, call, reduction, overwrite_inputs)
    # A bad id makes a reduced loss NaN: looking for the id only then saves every other call a pass over the labels.
    if readable and reduction != "none" and math.isnan(loss.item()):  # on the CPU
        _check_ids(call, classes)
    return loss


def _check_ids(call: arguments.Call, classes: int) -> None:
    first_bad = _native.ops.first_bad_id(call.targets, classes, call.ignore_index) if _native.available else reference.first_bad_id(call, classes)
    arguments.check_ids(first_bad, call.targets, classes, call.ignore_index)

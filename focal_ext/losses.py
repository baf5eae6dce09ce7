# Owns: the public functions, one per loss: signature, defaults, documentation.
# Must not know: kernels, autograd, argument rules.
from __future__ import annotations

from torch import Tensor

from ._arguments import Alpha, Normalizer, Targets
from ._call import Loss, Request, check
from ._run import fused


@fused
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
    label_smoothing: float = 0.0,
    overwrite_inputs: bool = False,
) -> Request:
    """Sigmoid focal loss of every anchor and class, fused (Lin et al. 2017, "Focal Loss for Dense Object Detection", eq. 5).

    Equivalent to ``torchvision.ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)`` for dense targets, and to the same
    with a one-hot of ``targets`` for class ids. Loss and gradient take one pass over the logits.

    Args:
        inputs: logits of shape (..., C); float32, bfloat16, float16 or float64. Half types compute in float32. Any strides: rows in
            another order are read in place, other layouts cost one copy.
        targets: read by rank. Of shape ``inputs.shape[:-1]``: class ids of any integer dtype, where [0, C) is a positive, -1 or C
            background; where C is 1 only -1, for an id of 1 may be meant as a label. Of shape ``inputs.shape``: dense labels, bool or
            integers of 0 and 1, or float probabilities in [0, 1], whose values are not checked.
        alpha: factor of positives, 1 - alpha that of negatives. None or -1: both 1. A tensor or sequence of C floats: alpha_c for
            positives of class c, 1 - alpha_c for its negatives.
        gamma: focusing exponent, finite and >= 0. 0 is (balanced) cross entropy.
        reduction: "none" returns the loss of each logit in the inputs' dtype; "sum" and "mean" return a float32 (float64 for float64)
            number, "mean" over all logits that are not ignored.
        normalizer: with "sum" only, what the sum is divided by: a float > 0; a 0-d tensor on the inputs' device, which is not read, so
            that 0 or NaN in it gives inf or NaN (``n.clamp(min=1)``); or "positives", the number of positive class ids, at least 1,
            counted on the device.
        weight: multiplies the loss of each logit; broadcasts to inputs. One value per row is a column: ``weight[:, None]``.
        ignore_index: class id that is skipped, tested before all others; such rows give exactly 0 and a gradient of 0. Of dense targets
            each element that equals it is skipped likewise. None: nothing is.
        label_smoothing: s in [0, 1] moves the targets of the cross entropy to t (1 - s) + s / 2; the modulating factor and alpha keep the
            hard label (as apex and effdet do). To smooth all three, as keras does, pass dense targets that are smoothed already.
        overwrite_inputs: backward writes the gradient over the logits, which saves a tensor of their size. They stay readable until
            then. Without effect when no gradient is needed, under torch.compile and torch.func. Backward runs once.

    Returns:
        The loss; 0 for empty inputs and when every row is ignored.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, value, device or combination. A class id out of range, or a dense integer other than 0, 1 and
            ignore_index, raises on CPU in eager mode; on CUDA and in compiled graphs it makes loss and gradient of its row, or of its
            logit, NaN, because reading it would stall the device.

    Example:
        >>> logits = torch.randn(8, 80, requires_grad=True)
        >>> labels = torch.tensor([3, -1, -1, 80, -2, -1, 17, -1])  # two positives, one ignored, the rest background
        >>> sigmoid_focal_loss(logits, labels, reduction="sum", normalizer="positives").backward()
    """
    return check(
        Loss.SIGMOID_FOCAL, inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs, smoothing=label_smoothing
    )


@fused
def quality_focal_loss(
    inputs: Tensor,
    targets: Targets,
    beta: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
) -> Request:
    """Quality focal loss, |t - p|^beta CE(p, t), fused (Li et al. 2020, "Generalized Focal Loss", eq. 4).

    The target t is a quality, such as the IoU of the predicted box, at the anchor's class and 0 elsewhere. The gradient goes through
    the modulating factor.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores), both of shape ``inputs.shape[:-1]``, class ids as in :func:`sigmoid_focal_loss` and a float score
            for each, read at positive ids only; or dense scores in [0, 1] of shape ``inputs.shape``.
        beta: exponent, finite and >= 1: below, the derivative is infinite where p meets the score.
        reduction, normalizer, weight, ignore_index, overwrite_inputs: as in :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> quality_focal_loss(logits, (torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])), reduction="sum").backward()
    """
    return check(Loss.QUALITY_FOCAL, inputs, targets, None, beta, reduction, normalizer, weight, ignore_index, overwrite_inputs)


@fused
def varifocal_loss(
    inputs: Tensor,
    targets: Targets,
    alpha: float = 0.75,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
) -> Request:
    """Varifocal loss: t CE(p, t) for t > 0, alpha p^gamma CE(p, t) otherwise, fused (Zhang et al. 2021, "VarifocalNet", eq. 2).

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: a pair (ids, scores) or dense scores in [0, 1], as in :func:`quality_focal_loss`.
        alpha: factor of negatives, in [0, 1].
        gamma: focusing exponent of negatives, finite and >= 0.
        reduction, normalizer, weight, ignore_index, overwrite_inputs: as in :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits = torch.randn(3, 80, requires_grad=True)
        >>> varifocal_loss(logits, (torch.tensor([3, -1, 80]), torch.tensor([0.7, 0.0, 0.0])), reduction="sum").backward()
    """
    return check(Loss.VARIFOCAL, inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs)


@fused
def asymmetric_loss(
    inputs: Tensor,
    targets: Tensor,
    gamma_neg: float = 4.0,
    gamma_pos: float = 1.0,
    clip: float | None = 0.05,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    overwrite_inputs: bool = False,
) -> Request:
    """Asymmetric loss, fused (Ridnik et al. 2021, "Asymmetric Loss for Multi-Label Classification", eq. 4 to 7).

    t (1 - p)^gamma_pos (-log p) + (1 - t) u^gamma_neg (-log(1 - u)) with u = max(p - clip, 0). No logarithm is clamped, so confident
    errors keep their gradients (timm's stop below a logit of -18.4).

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`.
        targets: class ids or dense labels, as in :func:`sigmoid_focal_loss`. Several classes of one row need dense labels.
        gamma_neg, gamma_pos: focusing exponents of negatives and positives, finite and >= 0.
        clip: probability, in [0, 1), below which a negative counts nothing. None or 0: off.
        reduction, normalizer, weight, ignore_index, overwrite_inputs: as in :func:`sigmoid_focal_loss`, and so are the errors.

    Example:
        >>> logits, labels = torch.randn(3, 80, requires_grad=True), torch.rand(3, 80) < 0.02
        >>> asymmetric_loss(logits, labels, reduction="sum").backward()
    """
    return check(
        Loss.ASYMMETRIC, inputs, targets, None, gamma_neg, reduction, normalizer, weight, ignore_index, overwrite_inputs,
        gamma_positive=gamma_pos, clip=clip,
    )


@fused
def softmax_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: Alpha = None,
    gamma: float = 2.0,
    reduction: str = "mean",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -100,
    label_smoothing: float = 0.0,
    overwrite_inputs: bool = False,
) -> Request:
    """Softmax focal loss of every row, sum_c alpha_c t_c (1 - p_c)^gamma (-log p_c) with p the row's softmax, fused.

    Equivalent to ``torch.nn.functional.cross_entropy(inputs, targets, ignore_index=...)`` for gamma 0 without alpha, the classes being
    the last dimension of ``inputs``; to mmcv's ``softmax_focal_loss`` for a float alpha. A form seen in tutorials averages N * C products
    with a one-hot instead of N rows: that is this loss divided by C.

    Args:
        inputs: logits of shape (..., C), as in :func:`sigmoid_focal_loss`. A row with several logits of +inf, or of -inf only, is NaN.
        targets: read by rank. Of shape ``inputs.shape[:-1]``: class ids of any integer dtype, in [0, C) or ``ignore_index``; no background
            is implied, it is a class like others. Of shape ``inputs.shape``: dense labels, bool or integers of 0 and 1, or float
            probabilities, whose values are not checked.
        alpha: factor of the loss, finite and >= 0: a float for every row, a tensor or sequence of C floats for the target's class.
            None or -1: off.
        gamma: focusing exponent, finite and >= 0. 0 is cross entropy.
        reduction: "none" returns the loss of each row, of shape ``inputs.shape[:-1]``, in the inputs' dtype; "sum" and "mean" return a
            float32 (float64 for float64) number, "mean" over all rows that are not ignored, whatever alpha and weight are.
        normalizer: with "sum" only, as in :func:`sigmoid_focal_loss`; "positives" is the number of rows that are not ignored.
        weight: multiplies the loss of each row; broadcasts to ``inputs.shape[:-1]``.
        ignore_index: class id that is skipped; such rows give exactly 0 and a gradient of 0. So does a row of dense targets in which
            any element equals it, for without one of its probabilities a row has no cross entropy. None: nothing is skipped.
        label_smoothing: s in [0, 1] moves s of the target's mass to all classes alike, in the cross entropy only: alpha and the modulating
            factor keep the class id. With class ids only; dense targets can be smoothed beforehand.
        overwrite_inputs: as in :func:`sigmoid_focal_loss`.

    Returns:
        The loss; 0 for empty inputs and when every row is ignored.

    Raises:
        TypeError, ValueError: as in :func:`sigmoid_focal_loss`; also for an id of -1 or C.

    Example:
        >>> logits = torch.randn(8, 80, requires_grad=True)
        >>> softmax_focal_loss(logits, torch.randint(80, (8,)), alpha=0.25).backward()
    """
    return check(
        Loss.SOFTMAX_FOCAL, inputs, targets, alpha, gamma, reduction, normalizer, weight, ignore_index, overwrite_inputs, smoothing=label_smoothing
    )

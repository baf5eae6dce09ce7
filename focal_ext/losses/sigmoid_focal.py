# Owns: the sigmoid focal loss: what it declares, its signature and documentation, its textbook formula.
# Must not know: kernels, autograd, layouts, other losses.
from __future__ import annotations

from torch import Tensor

from .._arguments import Alpha, Normalizer, Targets, check_exponent, check_flag, check_fraction
from .._call import Request, check
from .._elementary import focal
from .._factors import check_alpha
from .._module import module_of
from .._run import fused
from .._spec import LossSpec


def _parameters(gamma: float, label_smoothing: float, modulator_gradient: bool) -> tuple[float, ...]:
    return (
        check_exponent("gamma", gamma),
        check_fraction("label_smoothing", label_smoothing),
        check_flag("modulator_gradient", modulator_gradient),
    )


SPEC = LossSpec(
    number=0, parameters=_parameters, formula=focal, alpha=check_alpha, has_class_alpha=True, has_cuda_levels=True
)


@fused(SPEC)
def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Targets,
    alpha: Alpha = 0.25,
    gamma: float = 2.0,
    reduction: str = "none",
    *,
    normalizer: Normalizer = None,
    weight: Tensor | None = None,
    ignore_index: int | None = -2,
    label_smoothing: float = 0.0,
    modulator_gradient: bool = True,
    overwrite_inputs: bool = False,
    class_dim: int = -1,
    batch_dims: int = 0,
) -> Request:
    """Sigmoid focal loss of every anchor and class, alpha_t (1 - p_t)^gamma CE(p, t), fused (Lin et al. 2017, "Focal
    Loss for Dense Object Detection", eq. 5).

    p_t is p = sigmoid(x) where the target t is 1, and 1 - p where it is 0; alpha_t is alpha and 1 - alpha.

    Equivalent to ``torchvision.ops.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction)`` for dense targets,
    and to the same with a one-hot of ``targets`` for class ids. Loss and gradient take one pass over the logits.

    Args:
        inputs: logits of shape (..., C); float32, bfloat16, float16 or float64. Half types compute in float32. Rows are
            read in place, in any order; any other layout costs one copy.
        targets: one of three, told by shape. Class ids of shape ``inputs.shape[:-1]`` and any integer dtype: [0, C) is
            a positive, -1 and C are background. (Where C is 1 only -1 is: an id of 1 may be meant as a label.) Dense
            labels of shape ``inputs.shape``: bool, integers of 0 and 1, or float probabilities in [0, 1], whose values
            are not checked. A pair (ids, scores), both of shape ``inputs.shape[:-1]``: equal to dense labels that are
            the score at the class of a positive id, and 0 elsewhere. Scores are float and read at positive ids alone.
            A pair at gamma 0 without alpha is the cross entropy of soft scores (YOLOX, YOLOv8).
        alpha: factor of positives; negatives have 1 - alpha. A tensor or sequence of C floats: alpha_c for positives of
            class c, 1 - alpha_c for its negatives. None or -1: no factors.
        gamma: focusing exponent, finite and >= 0. 0 is (balanced) cross entropy.
        reduction: "none" returns the loss of each logit in the inputs' dtype. "sum" and "mean" return a number in
            float32 (float64 for float64); "mean" is over all logits that are not ignored.
        normalizer: with "sum" only, what the sum is divided by: a float > 0; "positives", the number of positive class
            ids, at least 1, counted on the device; or a 0-d tensor on the inputs' device. The tensor is not read, so 0
            or NaN in it gives inf or NaN (``n.clamp(min=1)``).
        weight: multiplies the loss of each logit; broadcasts to inputs. One value per row is a column: ``weight[:,
            None]``.
        ignore_index: class id that is skipped, whatever it would mean otherwise: loss and gradient of such a row are
            exactly 0. A dense label that equals it is skipped likewise. None: nothing is skipped.
        label_smoothing: s in [0, 1] moves the target of the cross entropy to t (1 - s) + s / 2. The modulating factor
            and alpha keep the hard label (as in apex and effdet). To smooth all three, as keras does, pass dense labels
            that are smoothed already.
        modulator_gradient: whether the gradient goes through the modulating factor (1 - p_t)^gamma. False takes that
            factor for a constant, as ``.detach()`` of it would, in derivatives of all orders; a gradient is then up to
            1 + gamma times smaller.
        overwrite_inputs: the gradient replaces the logits, which saves a tensor of their size. "sum" and "mean" write
            it in the call, after which the logits are gone. "none" and float16 write it in backward, which then runs
            once. A later call on the same logits is an error. Without effect when no gradient is needed, under
            torch.compile and under torch.func.
        class_dim: the dimension of inputs that holds the classes: 1 for the maps [N, C, *spatial] of a segmenter, with
            ids [N, *spatial]. Contiguous and channels_last memory is read in place. A copy is made of any other memory;
            for a weight of both classes and positions; for dense labels with alpha by class; and on CUDA for unreduced
            losses, weights of classes, and as :mod:`focal_ext.pyramid` says. The softmax focal loss copies dense
            labels on CUDA.
        batch_dims: how many leading dimensions of inputs keep a loss of their own: "sum" and "mean" then return a
            tensor of shape ``inputs.shape[:batch_dims]``. "mean" and "positives" count within each; a tensor normalizer
            is 0-d or of that shape. They end before the classes. A mean for each mask of [N, M, H, W] is
            ``reduction="mean", batch_dims=2``.

    Returns:
        The loss; 0 for empty inputs and when every row is ignored.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape, value, device or combination. Also, on the CPU in eager mode, a class id out of range
            or a dense integer other than 0, 1 and ignore_index. On CUDA and in compiled graphs such a target makes loss
            and gradient of its row, or of its logit, NaN, because reading it would stall the device;
            :func:`focal_ext.debug` makes it raise there too.

    Example:
        >>> logits = torch.randn(8, 80, requires_grad=True)
        >>> labels = torch.tensor([3, -1, -1, 80, -2, -1, 17, -1])  # two positives, one ignored, the rest background
        >>> sigmoid_focal_loss(logits, labels, reduction="sum", normalizer="positives").backward()
    """
    shared = reduction, normalizer, weight, ignore_index, overwrite_inputs, class_dim, batch_dims
    return check(SPEC, inputs, targets, alpha, shared, gamma, label_smoothing, modulator_gradient)


SigmoidFocalLoss = module_of(sigmoid_focal_loss)

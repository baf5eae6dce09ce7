# Owns: the public functions over the levels of a feature pyramid, one for each loss.
# Must not know: any one loss, formulas, kernels, what an argument may be.
"""The losses of :mod:`focal_ext` over a feature pyramid, read in the layout in which a convolution writes it: no
permute, no cat, no copy.

``focal_ext.pyramid.<loss>(levels, targets, num_classes, ...)`` is equal, to rounding, to flattening the levels to
(images, anchors, classes), concatenating them and calling the function over rows. On the CPU gradients are the same to
the bit, except with one weight for each image, which is multiplied first. Gradients have each level's memory format.

On CUDA float64 levels and those of the asymmetric loss are copied into rows first; so are those of the softmax focal
loss if one is channels_last.

Args:
    levels: logits [B, A * K, H_l, W_l] of each level: a list, a tuple, a dict as an FPN returns it, or its values.
        Channel ``a * K + k`` is anchor a and class k, as torchvision, detectron2 and mmdet arrange them. Each is
        contiguous or channels_last; any other layout costs a copy.
    targets: class ids [B, sum of H_l W_l A]: one level after the other, each in the order (y, x, anchor) with the
        anchor fastest. Or a list of such tensors, one for each level. Or a pair (ids, scores) of these. Or dense: a
        list with a map of each level's shape, float, bool or integers. A map is read in place where it has its level's
        memory order, alpha is not by class and weight not by anchor.
    num_classes: K.
    reduction: "sum" (the default here), or "mean" over all logits that are not ignored.
    weight: a factor for each image, [B, 1], such as torchvision's normalizer of each image; or for each anchor, of the
        shape of the class ids.
    batch_dims: 1 gives a loss for each image.
    others: as in the function over rows.

Returns:
    The loss, a float32 (float64 for float64) number, or one for each image.

Raises:
    TypeError, ValueError: as in the function over rows; also for an empty list of levels.

Example:
    >>> levels = [torch.randn(2, 9 * 80, s, s, requires_grad=True) for s in (8, 4)]
    >>> labels = torch.full((2, 9 * (64 + 16)), -1)
    >>> focal_ext.pyramid.sigmoid_focal_loss(levels, labels, 80, normalizer="positives").backward()

Each is a module too: ``focal_ext.pyramid.SigmoidFocalLoss(num_classes, ...)``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import losses  # noqa: F401  the rooms declare the functions
from ._module import PyramidLossModule, module_of
from ._run import run
from ._spec import FUNCTIONS
from ._twins import over_levels

__all__ = [function.__name__ for function in FUNCTIONS]
globals().update((function.__name__, over_levels(function, run, __name__)) for function in FUNCTIONS)
_modules = [module_of(globals()[function.__name__], PyramidLossModule) for function in FUNCTIONS]
__all__ += [module.__name__ for module in _modules]
globals().update((module.__name__, module) for module in _modules)

if TYPE_CHECKING:

    def __getattr__(name: str) -> Any: ...

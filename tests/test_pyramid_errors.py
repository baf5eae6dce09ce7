# Owns: bad arguments of the pyramid op: the exception and its sentence: argument, rule, what came, way out.
# Must not know: formulas.
from __future__ import annotations

import math
from typing import Any

import focal_ext
import pytest
import torch
from pyramids import Shape, labels, maps
from torch import Tensor

SHAPE = Shape(images=2, anchors=2, classes=3, sizes=((2, 3), (1, 2)))
LEVELS, IDS = maps(SHAPE), labels(SHAPE)
PARTS = list(IDS.split(SHAPE.counts, dim=1))


def with_id(value: int, at: tuple[int, int]) -> Tensor:
    ids = IDS.clone()
    ids[at] = value
    return ids


# What changes in the call (LEVELS, IDS, 3), the exception, and what its message says, in this order.
ROWS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "levels a tensor": ({"levels": LEVELS[0]}, TypeError, r"levels: .*list of tensors.*Tensor; use \[levels\]"),
    "levels a generator": ({"levels": iter(LEVELS)}, TypeError, r"levels: .*list_iterator; use list\(levels\)"),
    "levels empty": ({"levels": []}, ValueError, r"levels: .*at least one level.*empty list"),
    "a level no tensor": ({"levels": [LEVELS[0], 1.0]}, TypeError, r"levels\[1\]: .*torch\.Tensor.*float"),
    "a level of integers": (
        {"levels": [LEVELS[0].long(), LEVELS[1]]},
        TypeError,
        r"levels\[0\]: .*float32, bfloat16.*int64.*levels\[0\]\.float\(\)",
    ),
    "a sparse level": ({"levels": [LEVELS[0].to_sparse(), LEVELS[1]]}, TypeError, r"levels\[0\]: .*strided.*to_dense"),
    "a level of rank 3": (
        {"levels": [LEVELS[0], LEVELS[1][0]]},
        ValueError,
        r"levels\[1\]: .*\[B, anchors \* 3, H, W\].*\(6, 1, 2\)",
    ),
    "channels no multiple of classes": ({"num_classes": 4}, ValueError, r"levels\[0\]: .*anchors \* 4.*\(2, 6, 2, 3\)"),
    "no channels": ({"levels": [LEVELS[0][:, :0], LEVELS[1][:, :0]]}, ValueError, r"levels\[0\]: .*\(2, 0, 2, 3\)"),
    "levels of other images": (
        {"levels": [LEVELS[0], LEVELS[1][:1]]},
        ValueError,
        r"levels\[1\]: .*images and channels.*\(2, 6\).*\(1, 6\)",
    ),
    "levels of two dtypes": (
        {"levels": [LEVELS[0], LEVELS[1].double()]},
        ValueError,
        r"levels\[1\]: .*float32 on cpu.*float64",
    ),
    "levels on two devices": (
        {"levels": [LEVELS[0], LEVELS[1].to("meta")]},
        ValueError,
        r"levels\[1\]: .*on cpu.*meta",
    ),
    "num_classes 0": ({"num_classes": 0}, ValueError, r"num_classes: .*at least 1.*0"),
    "num_classes float": ({"num_classes": 3.0}, TypeError, r"num_classes: .*integer.*float"),
    "num_classes bool": ({"num_classes": True}, TypeError, r"num_classes: .*bool"),
    "targets no tensor": ({"targets": 3}, TypeError, r"targets: .*tensor of class ids or a list.*int"),
    "targets a list of numbers": ({"targets": [1, 2]}, TypeError, r"targets: .*list"),
    "targets too short": ({"targets": IDS[:, 1:]}, ValueError, r"targets: .*\(2, 16\).*\(2, 15\)"),
    "targets for one level missing": ({"targets": PARTS[:1]}, ValueError, r"targets: .*\(2, 12\), \(2, 4\).*\(2, 12\)"),
    "targets of levels swapped": ({"targets": PARTS[::-1]}, ValueError, r"targets: .*\(2, 4\), \(2, 12\)"),
    "targets of two dtypes": (
        {"targets": [PARTS[0], PARTS[1].int()]},
        TypeError,
        r"targets: .*one dtype.*int64.*int32",
    ),
    "targets float": ({"targets": IDS.float()}, TypeError, r"targets: .*integers.*float32.*targets\.long\(\)"),
    "targets bool": ({"targets": IDS > 0}, TypeError, r"targets: .*bool"),
    "targets dense": ({"targets": torch.rand(2, 16, 3)}, ValueError, r"targets: .*\(2, 16\).*\(2, 16, 3\)"),
    "targets elsewhere": (
        {"targets": IDS.to("meta")},
        ValueError,
        r"targets: .*device.*cpu.*meta.*targets\.to\('cpu'\)",
    ),
    "id too large": (
        {"targets": with_id(93, (1, 5))},
        ValueError,
        r"targets: class id 93 at anchor 21 is outside \[0, 3\); use 3 or -1 for background, ignore_index=-2 to skip",
    ),
    "id too small": ({"targets": with_id(-100, (0, 0))}, ValueError, r"targets: class id -100 at anchor 0 is outside"),
    "id of a list": (
        {"targets": list(with_id(93, (1, 13)).split(SHAPE.counts, 1))},
        ValueError,
        r"targets: class id 93 at anchor 29 ",
    ),
    "id of no ignore_index": (
        {"targets": with_id(-2, (0, 0)), "ignore_index": None},
        ValueError,
        r"class id -2 at anchor 0.*background$",
    ),
    "weight no tensor": ({"weight": 2.0}, TypeError, r"weight: .*torch\.Tensor or None.*float"),
    "weight of images, flat": (
        {"weight": torch.rand(2)},
        ValueError,
        r"weight: .*\(2, 1\), one factor an image, or \(2, 16\), one an anchor, got \(2,\)",
    ),
    "weight of classes": ({"weight": torch.rand(3)}, ValueError, r"weight: .*got \(3,\)"),
    "weight complex": ({"weight": torch.ones(2, 1, dtype=torch.complex64)}, TypeError, r"weight: .*real.*complex64"),
    "weight elsewhere": ({"weight": torch.rand(2, 1).to("meta")}, ValueError, r"weight: .*device.*cpu.*meta"),
    "reduction none": ({"reduction": "none"}, ValueError, r"reduction: .*'sum' or 'mean'.*'none'.*sigmoid_focal_loss"),
    "reduction unknown": ({"reduction": "avg"}, ValueError, r"reduction: .*'avg'"),
    "gamma negative": ({"gamma": -1.0}, ValueError, r"gamma: .*>= 0.*-1"),
    "gamma tensor": ({"gamma": torch.tensor(2.0)}, TypeError, r"gamma: .*Tensor"),
    "alpha above 1": ({"alpha": 1.5}, ValueError, r"alpha: .*\[0, 1\].*1\.5"),
    "alpha too short": ({"alpha": [0.1, 0.2]}, ValueError, r"alpha: .*\(3,\).*\(2,\)"),
    "smoothing above 1": ({"label_smoothing": 1.1}, ValueError, r"label_smoothing: .*\[0, 1\].*1\.1"),
    "smoothing NaN": ({"label_smoothing": math.nan}, ValueError, r"label_smoothing: .*nan"),
    "normalizer 0": ({"normalizer": 0}, ValueError, r"normalizer: .*> 0"),
    "normalizer with mean": ({"normalizer": 2.0, "reduction": "mean"}, ValueError, r"normalizer: .*reduction='sum'"),
    "normalizer of images": ({"normalizer": torch.ones(2)}, ValueError, r"normalizer: .*0-d.*\(2,\)"),
    "ignore_index float": ({"ignore_index": -2.0}, TypeError, r"ignore_index: .*integer or None.*float"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_argument_is_named_with_the_rule_and_the_way_out(name: str) -> None:
    changed, exception, sentence = ROWS[name]
    with pytest.raises(exception, match=sentence) as caught:
        focal_ext.pyramid.sigmoid_focal_loss(**{"levels": LEVELS, "targets": IDS, "num_classes": 3, **changed})
    assert type(caught.value) is exception


def test_everything_after_reduction_is_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        focal_ext.pyramid.sigmoid_focal_loss(LEVELS, IDS, 3, 0.25, 2.0, "sum", 1.0)

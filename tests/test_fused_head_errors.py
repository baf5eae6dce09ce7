# Owns: every error of the convolution fused with its loss: each names the argument, the rule and the way out.
# Must not know: values, gradients.
from __future__ import annotations

from typing import Any

import pytest
import torch
from test_fused_head import CLASSES, Given, fused

GIVEN = Given()
ROWS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "features a tensor": ({"features": GIVEN.features[0]}, TypeError, r"features: .*list.*\[features\]"),
    "features empty": ({"features": []}, ValueError, r"features: .*at least one level"),
    "features of float16": (
        {"features": [x.half() for x in GIVEN.features]},
        TypeError,
        r"features: float16.*GradScaler.*bfloat16",
    ),
    "a level of rank 3": (
        {"features": [GIVEN.features[0], GIVEN.features[1][0]]},
        ValueError,
        r"features\[1\]: .*\[B, channels, H, W\].*\(6, 5, 7\)",
    ),
    "levels of two widths": (
        {"features": [GIVEN.features[0], GIVEN.features[1][:, :5]]},
        ValueError,
        r"features\[1\]: .*images and channels",
    ),
    "weight no tensor": ({"conv_weight": 1.0}, TypeError, r"conv_weight: .*torch\.Tensor.*float"),
    "weight of another dtype": (
        {"conv_weight": GIVEN.weight.double()},
        ValueError,
        r"conv_weight: .*float32 on cpu.*float64",
    ),
    "weight elsewhere": ({"conv_weight": GIVEN.weight.to("meta")}, ValueError, r"conv_weight: .*cpu.*meta"),
    "weight of groups": (
        {"conv_weight": GIVEN.weight[:, :3]},
        ValueError,
        r"conv_weight: .*\[anchors \* 5, 6, height, width\] without groups.*\(15, 3, 3, 3\)",
    ),
    "weight of other classes": ({"num_classes": 4}, ValueError, r"conv_weight: .*anchors \* 4"),
    "bias no tensor": ({"conv_bias": 1.0}, TypeError, r"conv_bias: .*float"),
    "bias too short": ({"conv_bias": GIVEN.bias[:3]}, ValueError, r"conv_bias: .*\(15,\).*\(3,\)"),
    "bias of another dtype": ({"conv_bias": GIVEN.bias.double()}, ValueError, r"conv_bias: .*float64"),
    "targets too short": ({"targets": GIVEN.ids[:, 1:]}, ValueError, r"targets: .*\(2, 456\).*\(2, 455\)"),
    "a pair": (
        {"targets": (GIVEN.ids, torch.rand(GIVEN.ids.shape))},
        TypeError,
        r"targets: .*class ids.*pair.*pyramid",
    ),
    "a bad id": (
        {"targets": GIVEN.ids.clone().index_put_((torch.tensor(1), torch.tensor(7)), torch.tensor(93))},
        ValueError,
        r"class id 93 at anchor 463 ",
    ),
    "stride 0": ({"stride": 0}, ValueError, r"stride: .*at least 1.*0"),
    "stride a text": ({"stride": "2"}, TypeError, r"stride: .*integer or a pair.*'2'"),
    "stride of three": ({"stride": (1, 1, 1)}, TypeError, r"stride: .*pair"),
    "padding negative": ({"padding": (0, -1)}, ValueError, r"padding: .*at least 0.*\(0, -1\)"),
    "padding same": ({"padding": "same"}, TypeError, r"padding: .*'same'"),
    "budget 0": ({"memory_budget": 0}, ValueError, r"memory_budget: .*at least 1 byte.*0"),
    "budget float": ({"memory_budget": 1e9}, TypeError, r"memory_budget: .*integer.*bytes.*float"),
    "reduction none": ({"reduction": "none"}, ValueError, r"reduction: .*'none'"),
    "num_classes 0": ({"num_classes": 0}, ValueError, r"num_classes: .*at least 1"),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_bad_argument_is_named_with_the_rule_and_the_way_out(name: str) -> None:
    changed, exception, sentence = ROWS[name]
    call = {
        "features": GIVEN.features,
        "conv_weight": GIVEN.weight,
        "conv_bias": GIVEN.bias,
        "targets": GIVEN.ids,
        "num_classes": CLASSES,
    }
    with pytest.raises(exception, match=sentence) as caught:
        fused(**{**call, **changed})
    assert type(caught.value) is exception

# Owns: bad arguments: the exception, its sentence (argument, rule, what came, way out), and that nothing was written
# before it.
# Must not know: formulas.
from __future__ import annotations

import weakref
import math
from typing import Any

import focal_ext
import pytest
import torch
from cases import ID_DTYPES, IMPLEMENTATIONS, Implementation
from family import SCORED
from torch import Tensor, nn

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
X, IDS, DENSE = torch.randn(4, 3), torch.tensor([0, -1, -2, 3]), torch.rand(4, 3)
QUANTISED = torch.quantize_per_tensor(torch.randn(4, 3), 0.1, 0, torch.qint8)

# What changes in the call (X, IDS), the exception, and what its message says, in this order.
ROWS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "logits no tensor": ({"inputs": [[1.0]]}, TypeError, r"inputs: .*torch\.Tensor.*list"),
    "logits integer": (
        {"inputs": X.long()},
        TypeError,
        r"inputs: .*float32, bfloat16, float16 or float64.*torch\.int64.*inputs\.float\(\)",
    ),
    "logits bool": ({"inputs": X > 0}, TypeError, r"inputs: .*torch\.bool"),
    "logits complex": ({"inputs": X.to(torch.complex64)}, TypeError, r"inputs: .*torch\.complex64"),
    "logits quantised": ({"inputs": QUANTISED}, TypeError, r"inputs: .*torch\.qint8"),
    "logits float8": ({"inputs": X.to(torch.float8_e4m3fn)}, TypeError, r"inputs: .*float8"),
    "logits 0-d": ({"inputs": torch.tensor(1.0)}, ValueError, r"inputs: .*\(\.\.\., classes\).*0-d.*inputs\[None\]"),
    "targets no tensor": ({"targets": [0, -1, -2, 3]}, TypeError, r"targets: .*torch\.Tensor.*list"),
    "targets too few": (
        {"targets": IDS[:3]},
        ValueError,
        r"targets: shape.*\(4,\) for class ids or \(4, 3\) for dense.*got \(3,\)",
    ),
    "targets a row too wide": ({"targets": torch.rand(4, 4)}, ValueError, r"targets: shape.*got \(4, 4\)"),
    "targets a column": ({"targets": IDS[:, None]}, ValueError, r"targets: shape.*got \(4, 1\)"),
    "targets 0-d": ({"targets": torch.tensor(1)}, ValueError, r"targets: shape.*got \(\)"),
    "ids float": (
        {"targets": IDS.float()},
        TypeError,
        r"targets: .*class ids.*integers.*torch\.float32.*targets\.long\(\)",
    ),
    "ids bool": ({"targets": IDS > 0}, TypeError, r"targets: .*integers.*torch\.bool"),
    "id 1 of one class": (
        {"inputs": X[:, :1], "targets": IDS.clamp(0, 1)},
        ValueError,
        r"targets: class id 1 at anchor 3 is ambiguous with one class.*-1 for background;.*targets\[\.\.\., None\]$",
    ),
    "id 2 of one class": (
        {"inputs": X[:, :1], "targets": IDS.clamp(0, 2)},
        ValueError,
        r"class id 2 at anchor 3 is outside \[0, 1\); use -1 for background, ignore_index=-2",
    ),
    "labels of one class": (
        {"inputs": X[:, :1], "targets": IDS > 0},
        TypeError,
        r"targets: .*integers.*torch\.bool; use targets\[\.\.\., None\]",
    ),
    "float labels of one class": (
        {"inputs": X[:, :1], "targets": torch.rand(4)},
        TypeError,
        r"targets: .*integers.*float32; use targets\[\.\.\., None\]",
    ),
    "classes before space": (
        {"inputs": torch.zeros(2, 3, 5, 5), "targets": torch.zeros(2, 5, 5, dtype=torch.int64)},
        ValueError,
        r"targets: shape.*\(2, 3, 5\).*got \(2, 5, 5\).*class_dim=1$",
    ),
    "dense complex": (
        {"targets": DENSE.to(torch.complex64)},
        TypeError,
        r"targets: .*float, bool or 0/1 integers.*torch\.complex64",
    ),
    "dense quantised": ({"targets": QUANTISED}, TypeError, r"targets: .*qint8"),
    "targets elsewhere": ({"targets": IDS.to("meta")}, ValueError, r"targets: .*device.*cpu.*meta.*targets\.to\("),
    "id too large": (
        {"targets": torch.tensor([0, 4, 93, -1])},
        ValueError,
        r"targets: class id 4 at anchor 1 is outside \[0, 3\); use 3 or -1 for background, ignore_index=-2 to skip",
    ),
    "id too small": (
        {"targets": torch.tensor([0, -1, -1, -100])},
        ValueError,
        r"targets: class id -100 at anchor 3 is outside \[0, 3\)",
    ),
    "id of no ignore_index": (
        {"ignore_index": None},
        ValueError,
        r"targets: class id -2 at anchor 2 is outside \[0, 3\); use 3 or -1 for background$",
    ),
    "id of another ignore_index": (
        {"ignore_index": 255},
        ValueError,
        r"targets: class id -2 at anchor 2.*ignore_index=255 to skip",
    ),
    "id beyond int64": (
        {"targets": torch.tensor([0, 2**64 - 1, 1, 1], dtype=torch.uint64)},
        ValueError,
        r"targets: class id 18446744073709551615 at anchor 1",
    ),
    "id of apex ignored as uint8": (
        {"targets": torch.tensor([0, 254, 1, 1], dtype=torch.uint8)},
        ValueError,
        r"targets: class id 254 at anchor 1",
    ),
    "gamma negative": ({"gamma": -0.5}, ValueError, r"gamma: .*finite and >= 0.*-0\.5"),
    "gamma infinite": ({"gamma": math.inf}, ValueError, r"gamma: .*finite.*inf"),
    "gamma NaN": ({"gamma": math.nan}, ValueError, r"gamma: .*finite.*nan"),
    "gamma beyond float": ({"gamma": 10**400}, ValueError, r"gamma: .*finite"),
    "gamma tensor": ({"gamma": torch.tensor(2.0)}, TypeError, r"gamma: .*number.*Tensor.*learnable"),
    "gamma None": ({"gamma": None}, TypeError, r"gamma: .*number.*NoneType"),
    "gamma bool": ({"gamma": True}, TypeError, r"gamma: .*number.*bool"),
    "alpha above 1": ({"alpha": 1.5}, ValueError, r"alpha: .*\[0, 1\].*None or -1.*1\.5"),
    "alpha almost off": ({"alpha": -0.5}, ValueError, r"alpha: .*-0\.5"),
    "alpha NaN": ({"alpha": math.nan}, ValueError, r"alpha: .*nan"),
    "alpha text": ({"alpha": "0.25"}, TypeError, r"alpha: .*sequence of 3 floats.*str"),
    "alpha bool": ({"alpha": True}, TypeError, r"alpha: .*bool"),
    "alpha of texts": ({"alpha": ["a", "b", "c"]}, TypeError, r"alpha: .*sequence of 3 floats"),
    "alpha too short": ({"alpha": [0.1, 0.2]}, ValueError, r"alpha: .*one value per class.*\(3,\).*\(2,\)"),
    "alpha per row": ({"alpha": torch.rand(4)}, ValueError, r"alpha: .*\(3,\).*\(4,\)"),
    "alpha list out of range": ({"alpha": [0.1, 1.2, 0.3]}, ValueError, r"alpha: every value.*\[0, 1\].*1\.2"),
    "alpha tensor NaN": ({"alpha": torch.tensor([0.1, math.nan, 0.3])}, ValueError, r"alpha: every value.*nan"),
    "alpha tensor -1": ({"alpha": torch.full((3,), -1.0)}, ValueError, r"alpha: every value"),
    "alpha complex": ({"alpha": torch.zeros(3, dtype=torch.complex64)}, TypeError, r"alpha: .*real.*complex64"),
    "alpha bool tensor": ({"alpha": torch.ones(3, dtype=torch.bool)}, TypeError, r"alpha: .*real.*bool"),
    "alpha elsewhere": ({"alpha": torch.rand(3).to("meta")}, ValueError, r"alpha: .*device.*cpu.*meta"),
    "reduction unknown": ({"reduction": "avg"}, ValueError, r"reduction: .*'none', 'mean' or 'sum'.*'avg'"),
    "reduction None": ({"reduction": None}, ValueError, r"reduction: .*None"),
    "normalizer with mean": (
        {"reduction": "mean", "normalizer": 2.0},
        ValueError,
        r"normalizer: .*reduction='sum'.*'mean'",
    ),
    "normalizer with none": (
        {"reduction": "none", "normalizer": "positives"},
        ValueError,
        r"normalizer: .*reduction='sum'.*'none'",
    ),
    "normalizer 0": (
        {"reduction": "sum", "normalizer": 0},
        ValueError,
        r"normalizer: .*finite and > 0.*0.*max\(n, 1\)",
    ),
    "normalizer negative": ({"reduction": "sum", "normalizer": -3.0}, ValueError, r"normalizer: .*-3"),
    "normalizer NaN": ({"reduction": "sum", "normalizer": math.nan}, ValueError, r"normalizer: .*nan"),
    "normalizer infinite": ({"reduction": "sum", "normalizer": math.inf}, ValueError, r"normalizer: .*inf"),
    "normalizer beyond float": ({"reduction": "sum", "normalizer": 10**400}, ValueError, r"normalizer: .*finite"),
    "normalizer bool": ({"reduction": "sum", "normalizer": True}, TypeError, r"normalizer: .*bool"),
    "normalizer unknown word": (
        {"reduction": "sum", "normalizer": "npos"},
        ValueError,
        r"normalizer: .*'positives'.*'npos'",
    ),
    "normalizer a list": ({"reduction": "sum", "normalizer": [2.0]}, TypeError, r"normalizer: .*list"),
    "normalizer 1-d": (
        {"reduction": "sum", "normalizer": torch.tensor([2.0])},
        ValueError,
        r"normalizer: .*0-d.*\(1,\).*squeeze",
    ),
    "normalizer complex": (
        {"reduction": "sum", "normalizer": torch.tensor(2j)},
        TypeError,
        r"normalizer: .*real.*complex64",
    ),
    "normalizer elsewhere": (
        {"reduction": "sum", "normalizer": torch.tensor(2.0).to("meta")},
        ValueError,
        r"normalizer: .*device.*cpu.*meta",
    ),
    "positives of dense": (
        {"targets": DENSE, "reduction": "sum", "normalizer": "positives"},
        ValueError,
        r"normalizer: 'positives'.*dense.*float or a 0-d tensor",
    ),
    "weight no tensor": ({"weight": 2.0}, TypeError, r"weight: .*torch\.Tensor or None.*float"),
    "weight per row, flat": (
        {"weight": torch.rand(4)},
        ValueError,
        r"weight: .*broadcast.*\(4, 3\).*\(4,\).*weight\[:, None\]",
    ),
    "weight per row of 3-d": (
        {"inputs": torch.randn(2, 5, 3), "targets": torch.zeros(2, 5, dtype=torch.int64), "weight": torch.rand(2, 5)},
        ValueError,
        r"weight: .*weight\[\.\.\., None\]",
    ),
    "weight too wide": ({"weight": torch.rand(4, 4)}, ValueError, r"weight: .*\(4, 3\).*\(4, 4\)"),
    "weight of higher rank": ({"weight": torch.rand(1, 4, 3)}, ValueError, r"weight: .*\(1, 4, 3\)"),
    "weight complex": ({"weight": torch.ones(3, dtype=torch.complex64)}, TypeError, r"weight: .*real.*complex64"),
    "weight elsewhere": ({"weight": torch.rand(3).to("meta")}, ValueError, r"weight: .*device.*cpu.*meta"),
    "ignore_index float": ({"ignore_index": -2.0}, TypeError, r"ignore_index: .*integer or None.*float"),
    "overwrite_inputs a number": ({"overwrite_inputs": 1}, TypeError, r"overwrite_inputs: .*bool.*int"),
    "ignore_index bool": ({"ignore_index": True}, TypeError, r"ignore_index: .*bool"),
}

PAIR = (IDS, torch.rand(4))
FAMILY: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "smoothing negative": (
        "sigmoid_focal_loss",
        {"label_smoothing": -0.1},
        ValueError,
        r"label_smoothing: .*\[0, 1\].*-0\.1.*0 switches it off",
    ),
    "smoothing above 1": (
        "sigmoid_focal_loss",
        {"label_smoothing": 1.1},
        ValueError,
        r"label_smoothing: .*\[0, 1\].*1\.1",
    ),
    "smoothing NaN": ("sigmoid_focal_loss", {"label_smoothing": math.nan}, ValueError, r"label_smoothing: .*nan"),
    "smoothing None": (
        "sigmoid_focal_loss",
        {"label_smoothing": None},
        TypeError,
        r"label_smoothing: .*number.*NoneType",
    ),
    "smoothing tensor": (
        "sigmoid_focal_loss",
        {"label_smoothing": torch.tensor(0.1)},
        TypeError,
        r"label_smoothing: .*number.*Tensor",
    ),
    "beta below 1": (
        "quality_focal_loss",
        {"targets": PAIR, "beta": 0.99},
        ValueError,
        r"beta: .*finite and >= 1.*0\.99.*derivative is infinite",
    ),
    "beta infinite": ("quality_focal_loss", {"targets": PAIR, "beta": math.inf}, ValueError, r"beta: .*finite.*inf"),
    "beta NaN": ("quality_focal_loss", {"targets": PAIR, "beta": math.nan}, ValueError, r"beta: .*nan"),
    "beta tensor": (
        "quality_focal_loss",
        {"targets": PAIR, "beta": torch.tensor(2.0)},
        TypeError,
        r"beta: .*number.*Tensor.*learnable beta",
    ),
    "beta bool": ("quality_focal_loss", {"targets": PAIR, "beta": True}, TypeError, r"beta: .*number.*bool"),
    "alpha of varifocal off": (
        "varifocal_loss",
        {"targets": PAIR, "alpha": None},
        TypeError,
        r"alpha: .*number.*NoneType",
    ),
    "alpha of varifocal -1": ("varifocal_loss", {"targets": PAIR, "alpha": -1}, ValueError, r"alpha: .*\[0, 1\].*-1"),
    "alpha of varifocal per class": (
        "varifocal_loss",
        {"targets": PAIR, "alpha": [0.1, 0.2, 0.3]},
        TypeError,
        r"alpha: .*number.*list",
    ),
    "gamma of varifocal negative": (
        "varifocal_loss",
        {"targets": PAIR, "gamma": -1.0},
        ValueError,
        r"gamma: .*finite and >= 0.*-1",
    ),
    "gamma_neg negative": ("asymmetric_loss", {"gamma_neg": -1.0}, ValueError, r"gamma_neg: .*finite and >= 0.*-1"),
    "gamma_pos infinite": ("asymmetric_loss", {"gamma_pos": math.inf}, ValueError, r"gamma_pos: .*finite.*inf"),
    "gamma_pos text": ("asymmetric_loss", {"gamma_pos": "1"}, TypeError, r"gamma_pos: .*number.*str"),
    "clip 1": ("asymmetric_loss", {"clip": 1.0}, ValueError, r"clip: .*\[0, 1\).*1\.0.*0 switches it off"),
    "clip negative": ("asymmetric_loss", {"clip": -0.05}, ValueError, r"clip: .*-0\.05"),
    "clip tensor": ("asymmetric_loss", {"clip": torch.tensor(0.05)}, TypeError, r"clip: .*number.*Tensor"),
    "beta between 0 and 1 without a gradient of the modulator": (
        "quality_focal_loss",
        {"targets": PAIR, "beta": 0.5, "modulator_gradient": False},
        ValueError,
        r"beta: .*>= 1",
    ),
    "modulator_gradient None": (
        "sigmoid_focal_loss",
        {"modulator_gradient": None},
        TypeError,
        r"modulator_gradient: must be a bool, got NoneType",
    ),
    "modulator_gradient 2": (
        "asymmetric_loss",
        {"modulator_gradient": 2.0},
        TypeError,
        r"modulator_gradient: must be a bool, got float",
    ),
    "alpha of matchability-aware above 1": (
        "matchability_aware_loss",
        {"targets": PAIR, "alpha": 1.5},
        ValueError,
        r"alpha: .*\[0, 1\].*1\.5",
    ),
    "gamma of matchability-aware negative": (
        "matchability_aware_loss",
        {"targets": PAIR, "gamma": -1.0},
        ValueError,
        r"gamma: .*finite and >= 0.*-1",
    ),
    "alpha of IoU-aware above 1": (
        "iou_aware_bce_loss",
        {"targets": PAIR, "alpha": 1.5},
        ValueError,
        r"alpha: .*\[0, 1\].*1\.5",
    ),
    "beta of Gaussian negative": ("gaussian_focal_loss", {"beta": -1.0}, ValueError, r"beta: .*finite and >= 0.*-1"),
    **{
        f"{what} of {loss}": (loss, changed, exception, sentence)
        for loss in SCORED
        for what, changed, exception, sentence in (
            ("ids alone", {"targets": IDS}, ValueError, r"targets: class ids need a score each.*pair \(ids, scores\)"),
            ("three tensors", {"targets": (*PAIR, IDS)}, TypeError, r"targets: .*pair \(ids, scores\).*tuple"),
            ("list of numbers", {"targets": (0, 1)}, TypeError, r"targets: .*pair"),
            (
                "too few scores",
                {"targets": (IDS, torch.rand(3))},
                ValueError,
                r"targets: .*both must have shape \(4,\).*\(4,\) and \(3,\)",
            ),
            ("dense ids in a pair", {"targets": (DENSE, DENSE)}, ValueError, r"targets: .*both must have shape \(4,\)"),
            (
                "float ids in a pair",
                {"targets": (IDS.float(), torch.rand(4))},
                TypeError,
                r"targets: .*class ids.*torch\.float32",
            ),
            (
                "integer scores",
                {"targets": (IDS, IDS)},
                TypeError,
                r"targets: the scores.*floating point.*int64.*scores\.float\(\)",
            ),
            ("sparse scores", {"targets": (IDS, torch.rand(4).to_sparse())}, TypeError, r"targets: .*dense strided"),
            (
                "scores elsewhere",
                {"targets": (IDS, torch.rand(4).to("meta"))},
                ValueError,
                r"targets: scores.*device.*cpu.*meta",
            ),
            (
                "bad id in a pair",
                {"targets": (IDS + 7, torch.rand(4))},
                ValueError,
                r"targets: class id 7 at anchor 0 is outside \[0, 3\)",
            ),
            (
                "weight too wide",
                {"targets": PAIR, "weight": torch.rand(4, 4)},
                ValueError,
                r"weight: .*\(4, 3\).*\(4, 4\)",
            ),
            (
                "normalizer with mean",
                {"targets": PAIR, "reduction": "mean", "normalizer": 2.0},
                ValueError,
                r"normalizer: .*reduction='sum'",
            ),
            (
                "positives of dense",
                {"targets": DENSE, "reduction": "sum", "normalizer": "positives"},
                ValueError,
                r"normalizer: 'positives'.*dense",
            ),
            ("unknown reduction", {"targets": PAIR, "reduction": "avg"}, ValueError, r"reduction: .*'avg'"),
            ("logits integer", {"inputs": X.long(), "targets": PAIR}, TypeError, r"inputs: .*torch\.int64"),
            ("ignore_index float", {"targets": PAIR, "ignore_index": -2.0}, TypeError, r"ignore_index: .*float"),
        )
    },
    **{
        f"{name} of asymmetric_loss": ("asymmetric_loss", *ROWS[name])
        for name in ROWS
        if not name.startswith(("gamma", "alpha"))
    },
}
EVERY_ROW = {**{name: ("sigmoid_focal_loss", *row) for name, row in ROWS.items()}, **FAMILY}


@implementations
@pytest.mark.parametrize("name", EVERY_ROW)
def test_a_bad_argument_is_named_with_its_rule_before_anything_is_written(
    name: str, implementation: Implementation
) -> None:
    loss, changed, exception, sentence = EVERY_ROW[name]
    call = {"inputs": X, "targets": IDS, **changed}
    tensors = [value for value in call.values() if isinstance(value, Tensor) and value.device.type == "cpu"]
    before = [(bytes(value.untyped_storage()), value._version) for value in tensors]
    with pytest.raises(exception, match=sentence) as caught:
        getattr(implementation.module, loss)(**call)
    assert type(caught.value) is exception
    assert [(bytes(value.untyped_storage()), value._version) for value in tensors] == before


# A call that passes, and what is changed in it by a value that is equal, or by a tensor that differs in one thing:
# still an error.
PASSED: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "gamma True for 1": ("sigmoid_focal_loss", {"gamma": 1}, {"gamma": True}, "gamma: must be a number, got bool"),
    "alpha True for 1": ("sigmoid_focal_loss", {"alpha": 1.0}, {"alpha": True}, "alpha: .*bool"),
    "normalizer True for 1": (
        "sigmoid_focal_loss",
        {"reduction": "sum", "normalizer": 1},
        {"normalizer": True},
        "normalizer: .*bool",
    ),
    "smoothing False for 0": ("sigmoid_focal_loss", {}, {"label_smoothing": False}, "label_smoothing: .*bool"),
    "ignore_index True for 1": (
        "sigmoid_focal_loss",
        {"targets": IDS.clamp(min=-1), "ignore_index": 1},
        {"ignore_index": True},
        "ignore_index: .*bool",
    ),
    "ignore_index float for int": ("sigmoid_focal_loss", {}, {"ignore_index": -2.0}, "ignore_index: .*float"),
    "overwrite_inputs 0 for False": ("sigmoid_focal_loss", {}, {"overwrite_inputs": 0}, "overwrite_inputs: .*int"),
    "gamma NaN": ("sigmoid_focal_loss", {}, {"gamma": math.nan}, "gamma: .*nan"),
    "positives of dense": (
        "sigmoid_focal_loss",
        {"reduction": "sum", "normalizer": "positives"},
        {"targets": DENSE},
        "normalizer: 'positives'",
    ),
    "another shape": ("sigmoid_focal_loss", {}, {"targets": IDS[:3]}, "targets: shape"),
    "another dtype": ("sigmoid_focal_loss", {}, {"targets": IDS.float()}, "targets: .*integers"),
    "another device": ("sigmoid_focal_loss", {}, {"targets": IDS.to("meta")}, "targets: .*device"),
    "another layout": ("sigmoid_focal_loss", {"targets": DENSE}, {"targets": DENSE.to_sparse()}, "targets: .*strided"),
    "a pair with no scores": ("sigmoid_focal_loss", {}, {"targets": (IDS, None)}, "targets: .*tuple"),
    "a bad id": ("sigmoid_focal_loss", {"reduction": "sum"}, {"targets": IDS + 4}, "targets: class id 4 at anchor 0"),
    "beta for gamma": ("varifocal_loss", {"targets": PAIR, "gamma": 0.5}, {"gamma": -0.5}, "gamma: .*-0.5"),
    "integer scores": ("quality_focal_loss", {"targets": PAIR}, {"targets": (IDS, IDS)}, "targets: the scores"),
    "clip True for 0": ("asymmetric_loss", {"clip": 0}, {"clip": False}, "clip: .*bool"),
}


@implementations
@pytest.mark.parametrize("name", PASSED)
def test_a_bad_call_that_is_like_a_good_one_is_an_error_each_time(name: str, implementation: Implementation) -> None:
    loss, good, changed, sentence = PASSED[name]
    function = getattr(implementation.module, loss)
    good = {"inputs": X, "targets": IDS, **good}
    value = function(**good)
    for _ in range(2):
        with pytest.raises((TypeError, ValueError), match=sentence):
            function(**{**good, **changed})
        assert torch.equal(function(**good), value)


@implementations
def test_equal_numbers_of_other_types_and_signs_of_zero_give_the_same_bits(implementation: Implementation) -> None:
    focal, varifocal = implementation.module.sigmoid_focal_loss, implementation.module.varifocal_loss
    for one, other in (
        ({"alpha": 1, "gamma": 2}, {"alpha": 1.0, "gamma": 2.0}),
        ({"alpha": 0.0, "gamma": 0.0}, {"alpha": -0.0, "gamma": -0.0}),
    ):
        for function, targets in ((focal, IDS), (varifocal, PAIR)):
            bits = [function(X, targets, **options).numpy().tobytes() for options in (one, other, one)]
            assert bits[0] == bits[1] == bits[2]


def test_numbers_that_passed_are_remembered_up_to_a_bound_and_no_tensor_with_them() -> None:
    known = focal_ext._options._looked_up
    given = {"normalizer": torch.tensor(2.0), "alpha": torch.rand(3), "weight": torch.rand(2, 1)}
    alive = [weakref.ref(t) for t in given.values()]
    focal_ext.sigmoid_focal_loss(torch.zeros(2, 3), torch.zeros(2, 3), reduction="sum", **given)
    given.clear()
    assert [t() for t in alive] == [None] * 3
    for gamma in range(known.cache_parameters()["maxsize"] + 1):
        focal_ext.sigmoid_focal_loss(torch.zeros(1, 1), torch.zeros(1, 1), gamma=gamma)
    assert 0 < known.cache_info().currsize <= known.cache_parameters()["maxsize"] <= 1024


@implementations
@pytest.mark.parametrize("dtype", ID_DTYPES)
def test_ids_of_every_integer_type_are_widened_before_they_are_compared(
    dtype: str, implementation: Implementation
) -> None:
    x, ids = torch.randn(3, 3), torch.tensor([0, 3, 2]).to(getattr(torch, dtype))
    plain = implementation.module.sigmoid_focal_loss(x, ids.long())
    # all equal to some id after a cast to a narrow type
    for ignore_index in (
        -2,
        -1,
        2**32,
        -(2**32),
        256 + 2,
        -254,
        None,
    ):
        assert torch.equal(implementation.module.sigmoid_focal_loss(x, ids, ignore_index=ignore_index), plain)


@implementations
def test_the_first_of_many_bad_ids_is_named_also_in_a_large_tensor_of_any_shape(implementation: Implementation) -> None:
    ids = torch.full((2, 30_000), -1)
    ids[1, 7], ids[1, 29_999] = 99, 98
    with pytest.raises(ValueError, match="class id 99 at anchor 30007 "):
        implementation.module.sigmoid_focal_loss(torch.zeros(2, 30_000, 2), ids)
    with pytest.raises(ValueError, match="class id 99 at anchor 15 "):
        implementation.module.sigmoid_focal_loss(torch.zeros(2, 30_000, 2).transpose(0, 1)[:9], ids.t()[:9] + 0)


@implementations
@pytest.mark.parametrize("ignore_index", [2**63, 2**64 - 1, -(2**63) - 1])
def test_an_ignore_index_beyond_int64_is_an_error_and_never_wraps(
    ignore_index: int, implementation: Implementation
) -> None:
    with pytest.raises(ValueError, match="ignore_index: .*int64"):
        implementation.module.sigmoid_focal_loss(X, IDS.clamp(min=-1), ignore_index=ignore_index)


# In the order of each signature, its defaults.
POSITIONAL = {
    "sigmoid_focal_loss": (X, IDS, 0.25, 2.0),
    "quality_focal_loss": (X, PAIR, 2.0),
    "varifocal_loss": (X, PAIR, 0.75, 2.0),
    "asymmetric_loss": (X, IDS, 4.0, 1.0, 0.05),
    "matchability_aware_loss": (X, PAIR, 1.5, None),
    "iou_aware_bce_loss": (X, PAIR, 0.25, 2.0),
    "gaussian_focal_loss": (X, DENSE, 2.0, 4.0),
}


@implementations
@pytest.mark.parametrize("loss", POSITIONAL)
def test_everything_after_reduction_is_keyword_only(loss: str, implementation: Implementation) -> None:
    function, arguments = getattr(implementation.module, loss), (*POSITIONAL[loss], "sum")
    assert torch.equal(function(*arguments), function(*POSITIONAL[loss][:2], reduction="sum"))  # they are the defaults
    for rest in ((1.0,), (1.0, None)):
        with pytest.raises(TypeError, match="positional"):
            function(*arguments, *rest)


@pytest.mark.parametrize("prior", [0, 1, -0.1, 1.5, math.nan])
def test_a_prior_that_is_no_probability_and_a_layer_without_bias_are_errors(prior: float) -> None:
    layer = nn.Linear(2, 2)
    before = layer.bias.detach().clone()
    with pytest.raises(ValueError, match=r"prior: must be in \(0, 1\)"):
        focal_ext.init_prior_(layer, prior)
    assert torch.equal(layer.bias, before)
    for bare in (nn.Linear(2, 2, bias=False), nn.ReLU()):
        with pytest.raises(ValueError, match="conv: must have a bias.*bias=True"):
            focal_ext.init_prior_(bare)

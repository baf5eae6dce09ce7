# Owns: numbers that change from step to step of a compiled function: they are compiled twice at most, and the values
# are the eager ones.
# Must not know: what the right values are (test_values.py), the rest of torch.compile (test_compile.py).
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import focal_ext
import pytest
import torch
from cases import REFERENCE_ONLY
from focal_ext import reference
from pairwise import taking_turns
from focal_ext.compat import apex, detr, effdet, fvcore, mmcv, mmdet, monai, torchvision
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

ROWS, CLASSES = 12, 5
IDS = torch.randint(-1, CLASSES, (ROWS,), generator=torch.Generator().manual_seed(0))
KNOWN = IDS.clamp(min=0)
HARD = (torch.arange(ROWS * CLASSES).view(ROWS, CLASSES) % 7 == 0).float()
SOFT = torch.linspace(0, 1, ROWS * CLASSES).view(ROWS, CLASSES)
SCORES = torch.linspace(0.1, 0.9, ROWS)
CONV = torch.linspace(-0.1, 0.1, CLASSES * 2 * 9).view(CLASSES, 2, 3, 3)

sigmoid, quality, varifocal, asymmetric, softmax, conv = (
    getattr(focal_ext, name)
    for name in (
        "sigmoid_focal_loss",
        "quality_focal_loss",
        "varifocal_loss",
        "asymmetric_loss",
        "softmax_focal_loss",
        "conv_sigmoid_focal_loss",
    )
)
pyramid = focal_ext.pyramid.sigmoid_focal_loss


def of_levels(x: Tensor, **options: Any) -> Tensor:
    return pyramid([x.reshape(1, CLASSES, 4, 3)], IDS[None], CLASSES, **options)


def of_features(x: Tensor, **options: Any) -> Tensor:
    return conv(
        [x.flatten()[:24].view(1, 2, 4, 3)], CONV.to(x.dtype), None, IDS[None], CLASSES, memory_budget=100, **options
    )


def with_attribute(module: nn.Module, name: str, *arguments: Any) -> Callable[[Tensor, float], Tensor]:
    """A schedule: the number is an attribute of the module."""

    def function(x: Tensor, n: float) -> Tensor:
        setattr(module, name, n)
        return module(x, *arguments)

    return function


# Everything public that takes a number, as a function of logits and a number in (0, 1).
NUMBERS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid normalizer": lambda x, n: sigmoid(x, IDS, reduction="sum", normalizer=100 * n),
    "sigmoid gamma": lambda x, n: sigmoid(x, IDS, gamma=3 * n, reduction="sum"),
    "sigmoid gamma, unreduced": lambda x, n: sigmoid(x, IDS, gamma=3 * n),
    "sigmoid alpha": lambda x, n: sigmoid(x, IDS, alpha=n, reduction="mean"),
    "sigmoid alphas": lambda x, n: sigmoid(x, IDS, alpha=[n, 0.1, 1 - n, 0.2, 0.3], reduction="sum"),
    "sigmoid label_smoothing": lambda x, n: sigmoid(x, HARD, label_smoothing=n, reduction="mean"),
    "quality beta": lambda x, n: quality(x, (IDS, SCORES), beta=1 + n, reduction="sum"),
    "quality normalizer": lambda x, n: quality(x, SOFT, reduction="sum", normalizer=n),
    "varifocal alpha, gamma": lambda x, n: varifocal(x, (IDS, SCORES), alpha=n, gamma=3 * n),
    "asymmetric gammas, clip": lambda x, n: asymmetric(
        x, HARD, gamma_neg=4 * n, gamma_pos=n, clip=n / 4, reduction="sum", normalizer=n
    ),
    "softmax alpha, gamma, smoothing": lambda x, n: softmax(x, KNOWN, alpha=3 * n, gamma=2 * n, label_smoothing=n),
    "pyramid normalizer": lambda x, n: of_levels(x, normalizer=100 * n),
    "pyramid alpha, gamma, smoothing": lambda x, n: of_levels(
        x, alpha=n, gamma=3 * n, label_smoothing=n, reduction="mean"
    ),
    "fused head normalizer": lambda x, n: of_features(x, normalizer=100 * n),
    "fused head alpha, gamma, smoothing": lambda x, n: of_features(
        x, alpha=n, gamma=3 * n, label_smoothing=n, reduction="mean"
    ),
    "module normalizer": lambda x, n: focal_ext.SigmoidFocalLoss(reduction="sum")(x, IDS, normalizer=100 * n),
    "module's gamma": with_attribute(focal_ext.SigmoidFocalLoss(reduction="sum"), "gamma", IDS),
    "softmax module's alpha": with_attribute(focal_ext.SoftmaxFocalLoss(), "alpha", KNOWN),
    "torchvision": lambda x, n: torchvision.sigmoid_focal_loss(x, HARD, n, 3 * n, "sum"),
    "fvcore": lambda x, n: fvcore.sigmoid_focal_loss(x, SOFT, n, 3 * n, "mean"),
    "fvcore star": lambda x, n: fvcore.sigmoid_focal_loss_star(x, HARD, n, 1 + n, "sum"),
    "mmcv": lambda x, n: mmcv.sigmoid_focal_loss(x, KNOWN, 3 * n, n),
    "mmcv softmax": lambda x, n: mmcv.softmax_focal_loss(x, KNOWN, 3 * n, n),
    "mmcv's module's gamma": with_attribute(mmcv.SigmoidFocalLoss(2.0, 0.25), "gamma", KNOWN),
    "mmdet avg_factor": lambda x, n: mmdet.sigmoid_focal_loss(x, KNOWN, gamma=3 * n, alpha=n, avg_factor=100 * n),
    "mmdet quality avg_factor": lambda x, n: mmdet.quality_focal_loss(
        x, (KNOWN, SCORES), avg_factor=100 * n, beta=1 + n
    ),
    "mmdet varifocal avg_factor": lambda x, n: mmdet.varifocal_loss(x, SOFT, alpha=n, gamma=3 * n, avg_factor=100 * n),
    "mmdet module avg_factor": lambda x, n: mmdet.FocalLoss(loss_weight=2.0)(x, KNOWN, avg_factor=100 * n),
    "apex": lambda x, n: apex.focal_loss(x, IDS, torch.tensor(3.0), CLASSES, n, 3 * n, n),
    "DETR": lambda x, n: detr.sigmoid_focal_loss(x[None], HARD[None], 100 * n, n, 3 * n),
    "effdet": lambda x, n: effdet.new_focal_loss(x, HARD, n, 3 * n, 100 * n, n),
    "effdet legacy": lambda x, n: effdet.focal_loss_legacy(x, HARD, n, 3 * n, 100 * n),
    "monai": lambda x, n: monai.FocalLoss(gamma=3 * n, alpha=n, weight=[1.0, 2.0, 0.5, 1.0, 1.0])(x, HARD),
    "monai softmax": lambda x, n: monai.FocalLoss(gamma=3 * n, alpha=n, use_softmax=True, to_onehot_y=True)(
        x, KNOWN[:, None]
    ),
}
# What graphs below torch.compile's front do with symbols: once for each kind of op, and for the formulas in plain
# PyTorch.
BELOW: dict[str, Callable[[Tensor, float], Tensor]] = {
    **{
        name: NUMBERS[name]
        for name in (
            "sigmoid normalizer",
            "sigmoid gamma",
            "sigmoid gamma, unreduced",
            "sigmoid alphas",
            "pyramid alpha, gamma, smoothing",
            "fused head alpha, gamma, smoothing",
            "effdet",
            "monai softmax",
        )
    },
    "float16": lambda x, n: sigmoid(x.half(), IDS, gamma=3 * n, reduction="sum"),
    "reference sigmoid": lambda x, n: reference.sigmoid_focal_loss(
        x, HARD, n, 1 + n, "sum", normalizer=n, label_smoothing=n
    ),
    "reference sigmoid, mean": lambda x, n: reference.sigmoid_focal_loss(x, HARD, n, 3 * n, "mean", label_smoothing=n),
    "reference varifocal": lambda x, n: reference.varifocal_loss(x, (IDS, SCORES), n, 1 + n, "sum"),
    "reference asymmetric": lambda x, n: reference.asymmetric_loss(x, HARD, 1 + n, 1 + n, n / 2, "sum"),
    "reference softmax": lambda x, n: reference.softmax_focal_loss(x, KNOWN, n, 1 + n, label_smoothing=n),
}
VALUES = (0.5, 0.3, 0.7, 0.2, 0.9)


def compilations(
    function: Callable[[Tensor, float], Tensor],
    backend: str,
    values: Any = VALUES,
    dynamic: bool | None = None,
    read: bool = False,
) -> int:
    """Runs a step with each number, in one graph; with `read` the number comes by .item() from a tensor. Returns how
    often it was compiled."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    step = (lambda x, n: function(x * 1, n.item())) if read else lambda x, n: function(x * 1, n)
    compiled = torch.compile(step, backend=counter, fullgraph=True, dynamic=dynamic)
    for n in values:
        found = []
        for call, number in ((function, n), (compiled, torch.tensor(n, dtype=torch.float64) if read else n)):
            x = torch.randn(ROWS, CLASSES, generator=torch.Generator().manual_seed(1)).requires_grad_()
            loss = call(x, number).sum()
            found.append((loss.detach(), torch.autograd.grad(loss, x)[0]))
        for eager, ours in zip(*found):
            torch.testing.assert_close(ours, eager, rtol=2e-3 if function is BELOW["float16"] else 4e-6, atol=1e-6)
    return counter.frame_count


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_that_changes_is_compiled_twice_at_most(name: str) -> None:
    assert compilations(NUMBERS[name], "eager") <= 2


@pytest.mark.parametrize("name", BELOW)
def test_nothing_below_the_front_makes_the_number_a_constant(name: str) -> None:
    assert compilations(BELOW[name], "aot_eager") <= 2


@pytest.mark.parametrize(
    "name, read",
    [
        ("sigmoid normalizer", False),
        ("sigmoid normalizer", True),
        ("softmax alpha, gamma, smoothing", True),
        ("pyramid normalizer", False),
        ("fused head normalizer", True),
        ("mmdet avg_factor", False),
        ("DETR", True),
    ],
    ids=lambda value: value if isinstance(value, str) else "read from a tensor" if value else "",
)
def test_so_it_is_with_dynamic_shapes_and_numbers_read_from_tensors(name: str, read: bool) -> None:
    with torch._dynamo.config.patch(capture_scalar_outputs=read):
        assert compilations(NUMBERS[name], "aot_eager", dynamic=True, read=read) <= 2


@pytest.mark.parametrize("kind", [float, int], ids=["floats", "integers"])
def test_a_hundred_normalizers_are_two_compilations(kind: type) -> None:
    assert (
        compilations(
            lambda x, n: sigmoid(x, IDS, reduction="sum", normalizer=n), "eager", [kind(n) for n in range(2, 102)]
        )
        == 2
    )


def test_inductor_compiles_them_twice_too() -> None:
    assert (
        compilations(
            lambda x, n: sigmoid(x, IDS, alpha=n, gamma=3 * n, reduction="sum", normalizer=100 * n),
            "inductor",
            VALUES[:3],
        )
        == 2
    )


BAD = {
    "normalizer: must be finite and > 0, got -2.0": lambda x, n: sigmoid(x, IDS, reduction="sum", normalizer=n),
    "gamma: must be finite and >= 0, got -2.0": lambda x, n: sigmoid(x, IDS, gamma=n),
    "alpha: must be in \\[0, 1\\], or None or -1 to switch it off, got -2.0": lambda x, n: of_levels(x, alpha=n),
    "label_smoothing: must be in \\[0, 1\\], got -2.0": lambda x, n: softmax(x, KNOWN, label_smoothing=n),
}


@taking_turns({"known": ((), (0.3, 0.4))}, message=BAD)
def test_a_bad_number_is_the_eager_error(known: tuple[float, ...], message: str) -> None:
    """fullgraph=True quotes it in torch.compile's own error."""
    for fullgraph in (False, True):
        torch._dynamo.reset()
        compiled = torch.compile(BAD[message], backend="eager", fullgraph=fullgraph)
        for n in known:
            compiled(torch.zeros(ROWS, CLASSES), n)
        with pytest.raises(torch._dynamo.exc.Unsupported if fullgraph else ValueError, match=message):
            compiled(torch.zeros(ROWS, CLASSES), -2.0)


@torch._dynamo.config.patch(capture_scalar_outputs=True)
def test_a_bad_number_that_the_graph_reads_makes_the_loss_nan_as_a_normalizer_and_is_an_error_else() -> None:
    x = torch.zeros(ROWS, CLASSES)
    for message, function in BAD.items():
        torch._dynamo.reset()
        compiled = torch.compile(lambda x, n: function(x, n.item()), backend="aot_eager", fullgraph=True)  # noqa: B023
        compiled(x, torch.tensor(0.4))
        if "normalizer" in message:
            for n in (-2.0, 0.0, torch.inf, torch.nan):
                assert compiled(x, torch.tensor(n)).isnan()
        elif not REFERENCE_ONLY:
            with pytest.raises(ValueError, match=message.split(":")[0] + ": must be"):
                compiled(x, torch.tensor(-2.0))

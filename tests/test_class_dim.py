# Owns: classes in another dimension than the last: the same numbers and gradients as those of the moved logits, what is
# read in place, errors.
# Must not know: values (test_values.py, test_softmax_values.py).
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import focal_ext
import pytest
import torch
from cases import IMPLEMENTATIONS, Implementation
from pairwise import rows_of_every_pair
from test_autograd import Ops
from torch import Tensor

implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda i: i.module.__name__)
N, C, SPATIAL = 2, 5, (7, 6)
X = torch.randn(N, C, *SPATIAL, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
IDS = torch.randint(C, (N, *SPATIAL), generator=torch.Generator().manual_seed(1)).index_put_(
    (torch.tensor([0, 1]), torch.tensor([0, 6]), torch.tensor([0, 5])), torch.tensor(-2)
)
SCORES, DENSE = (
    torch.linspace(0, 1, IDS.numel(), dtype=torch.float64).view(IDS.shape),
    (torch.arange(X.numel()).view(X.shape) % 3 == 0).double(),
)
PAIR, PER_CLASS = (IDS, SCORES), [0.1, 0.2, 0.3, 0.4, 0.5]
OF_IMAGES, OF_POSITIONS, OF_CLASSES = (
    torch.rand(shape, dtype=torch.float64) for shape in ((N, 1, 1, 1), (N, 1, *SPATIAL), (C, 1, 1))
)

# A loss with targets and options as classes in dimension 1 have them.
ROWS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "ids": ("sigmoid_focal_loss", IDS, {}),
    "ids, alpha of each class": ("sigmoid_focal_loss", IDS, {"alpha": PER_CLASS}),
    "ids, weight of images": ("sigmoid_focal_loss", IDS, {"weight": OF_IMAGES}),
    "ids, weight of positions": ("sigmoid_focal_loss", IDS, {"weight": OF_POSITIONS}),
    "ids, weight of classes": ("sigmoid_focal_loss", IDS, {"weight": OF_CLASSES}),
    "dense": ("sigmoid_focal_loss", DENSE, {"label_smoothing": 0.1}),
    "dense, alpha of each class": ("sigmoid_focal_loss", DENSE, {"alpha": PER_CLASS}),
    "dense, weight of classes": ("sigmoid_focal_loss", DENSE, {"weight": OF_CLASSES}),
    "quality": ("quality_focal_loss", PAIR, {}),
    "varifocal": ("varifocal_loss", PAIR, {"weight": OF_POSITIONS}),
    "asymmetric": ("asymmetric_loss", IDS, {}),
    "softmax": ("softmax_focal_loss", IDS, {"ignore_index": -2}),
    "softmax, weight": (
        "softmax_focal_loss",
        IDS,
        {"ignore_index": -2, "weight": OF_POSITIONS[:, 0], "alpha": PER_CLASS},
    ),
    "softmax, weight of images, smoothed": (
        "softmax_focal_loss",
        IDS,
        {"ignore_index": -2, "weight": OF_IMAGES[:, 0], "label_smoothing": 0.1, "gamma": 1.7},
    ),
    "softmax, dense": ("softmax_focal_loss", DENSE, {}),
    "softmax, dense, some ignored": (
        "softmax_focal_loss",
        DENSE.where(IDS[:, None] != 1, -100.0),
        {"weight": OF_POSITIONS[0, 0], "alpha": PER_CLASS},
    ),
}


def last(value: Any, name: str = "") -> Any:
    """An argument as classes in the last dimension have it."""
    if (
        isinstance(value, Tensor)
        and value.dim() >= 3
        and (value.shape[-3:] == X.shape[1:] or (name == "weight" and value.shape[-3] in (1, C)))
    ):
        return value.movedim(-3, -1)
    return value


@implementations
@pytest.mark.parametrize("reduction", ["sum", "mean", "none"])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=["planes", "channels_last"])
@pytest.mark.parametrize("row", ROWS)
def test_loss_and_gradient_are_those_of_logits_whose_classes_were_moved(
    row: str, memory: torch.memory_format, reduction: str, implementation: Implementation
) -> None:
    name, targets, options = ROWS[row]
    inputs = X.to(memory_format=memory).requires_grad_()
    moved = X.movedim(1, -1).contiguous().requires_grad_()
    per_row = name == "softmax_focal_loss"
    options_last = {key: value if per_row else last(value, key) for key, value in options.items()}
    got = getattr(implementation.module, name)(inputs, targets, class_dim=1, reduction=reduction, **options)
    want = getattr(focal_ext, name)(moved, last(targets), reduction=reduction, **options_last)
    assert torch.allclose(got, want if per_row or reduction != "none" else want.movedim(-1, 1), rtol=1e-10)
    (gradient,), (expected,) = torch.autograd.grad(got.sum(), inputs), torch.autograd.grad(want.sum(), moved)
    assert torch.allclose(gradient, expected.movedim(-1, 1), rtol=1e-9, atol=1e-14)


SHAPES = {"1d": (2, 5, 12), "2d": (2, 5, 3, 4), "3d": (2, 5, 2, 3, 2), "classes third": (2, 3, 5, 7)}
IN_PLACE = [
    "ids",
    "ids, weight of images",
    "ids, weight of classes",
    "quality",
    "varifocal",
    "asymmetric",
    "softmax",
    "softmax, dense",
]


@pytest.mark.native
@pytest.mark.parametrize(
    "row, shape, reduction",
    [
        row.values()
        for row in rows_of_every_pair({"row": tuple(IN_PLACE), "shape": tuple(SHAPES), "reduction": ("sum", "none")})
    ],
)
def test_planes_of_any_number_of_dimensions_are_read_in_place(row: str, shape: str, reduction: str) -> None:
    name, _, options = ROWS[row]
    dim = 2 if shape == "classes third" else 1
    x = torch.randn(SHAPES[shape], requires_grad=True)
    ids = torch.randint(0, 5, (*x.shape[:dim], *x.shape[dim + 1 :]))
    scored, dense = name in ("quality_focal_loss", "varifocal_loss"), "dense" in row
    targets = (ids, torch.rand(ids.shape)) if scored else torch.rand(x.shape) if dense else ids
    factors = {
        "ids, weight of images": (*x.shape[:dim], *[1] * (x.dim() - dim)),
        "ids, weight of classes": (5, *[1] * (x.dim() - 1 - dim)),
    }
    options = {key: value for key, value in options.items() if key != "weight"} | {
        "class_dim": dim,
        "reduction": reduction,
    }
    if row in factors:
        options["weight"] = torch.rand(factors[row])
    upstream = (
        torch.rand(()) if reduction == "sum" else torch.rand(ids.shape if name == "softmax_focal_loss" else x.shape)
    )
    with Ops() as seen:
        loss = getattr(focal_ext, name)(x, targets, **options)
        loss.backward(upstream)
    wanted = (
        {"focal_ext.pyramid_loss_map", "focal_ext.pyramid_gradient"}
        if reduction == "none"
        else {"focal_ext.pyramid_loss_and_gradient"}
    )
    assert wanted <= set(seen.names) and not [
        name for name in seen.names if any(copy in name for copy in ("copy", "clone", "cat"))
    ]
    want = getattr(focal_ext.reference, name)(x, targets, **options)
    assert torch.allclose(loss, want, rtol=1e-4, atol=1e-6)
    assert x.grad.is_contiguous() and torch.allclose(
        x.grad, torch.autograd.grad(want, x, upstream)[0], rtol=1e-4, atol=1e-6
    )


@pytest.mark.native
@pytest.mark.parametrize("classes, positions", [(3, 1500), (130, 200), (1100, 70)])
@pytest.mark.parametrize("targets", ["ids", "dense"])
def test_softmax_rows_that_are_ignored_are_zero_whatever_their_logits_are_and_the_gradient_may_replace_them(
    targets: str, classes: int, positions: int
) -> None:
    """Rows that are ignored are 0 whatever stands there; others have the numbers of rows to rounding; the gradient may
    replace the logits."""
    rng = torch.Generator().manual_seed(0)
    x, ids = (
        torch.randn(2, classes, positions, generator=rng) * 4,
        torch.randint(classes, (2, positions), generator=rng),
    )
    ignored = torch.rand(ids.shape, generator=rng) < 0.1
    x, ids = (
        x.masked_fill(ignored[:, None] & (torch.rand(x.shape, generator=rng) < 0.3), torch.nan),
        ids.masked_fill(ignored, -100),
    )
    dense = torch.rand(x.shape, generator=rng).masked_fill(ignored[:, None], -100.0)
    chosen, of_rows = (ids, ids) if targets == "ids" else (dense, dense.movedim(1, -1))
    gradients, values = [], []
    for of_planes, overwrite in ((True, False), (True, True), (False, False)):
        leaf = x.clone().requires_grad_()
        inner = leaf * 1 if of_planes else leaf.movedim(1, -1)
        loss = focal_ext.softmax_focal_loss(
            inner, chosen if of_planes else of_rows, class_dim=1 if of_planes else -1, overwrite_inputs=overwrite
        )
        (gradient,) = torch.autograd.grad(loss, inner)
        gradients.append(gradient if of_planes else gradient.movedim(-1, 1))
        values.append(loss.detach())
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(values[0], values[1])
    assert not gradients[0][ignored[:, None].expand(x.shape)].any() and gradients[0].isfinite().all()
    room = 1e-5 * gradients[2].abs().amax(1, keepdim=True)  # of dense targets a gradient is a difference
    assert ((gradients[0] - gradients[2]).abs() <= room).all() and torch.allclose(values[0], values[2])


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes, smoothing", [(2, 0.0), (5, 0.1)])
@pytest.mark.parametrize("special", [True, False])
def test_softmax_strips_of_several_blocks_have_the_bits_of_small_calls(
    special: bool, classes: int, smoothing: float, dtype: torch.dtype
) -> None:
    """Many positions are cut into strips of blocks, whose stages overlap, few into strips of one block."""
    rng = torch.Generator().manual_seed(0)
    block = 512
    positions = 131 * block + 77  # strips of two blocks, and a last one that is not whole
    x = (torch.randn(1, classes, positions, generator=rng) * 20).to(dtype)
    ids = torch.randint(classes, (1, positions), generator=rng)
    ids[0, ::97] = -100
    if special:
        for number in (torch.inf, -torch.inf, torch.nan):
            x.masked_fill_(torch.rand(x.shape, generator=rng) < 2e-3, number)

    def run(x: Tensor, ids: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        inner = x.clone().requires_grad_() * 1
        options |= {"class_dim": 1, "reduction": "sum", "label_smoothing": smoothing}
        loss = focal_ext.softmax_focal_loss(inner, ids, **options)
        return loss.detach(), torch.autograd.grad(loss, inner)[0]

    loss, gradient = run(x, ids)
    parts = [run(*part) for part in zip(x.split(block, 2), ids.split(block, 1))]
    for each in (gradient, run(x, ids, overwrite_inputs=True)[1]):
        assert torch.allclose(each, torch.cat([part for _, part in parts], 2), rtol=0, atol=0, equal_nan=True)
    assert torch.allclose(loss, torch.stack([part for part, _ in parts]).double().sum().float(), equal_nan=True)


@pytest.mark.parametrize("row", ["ids", "softmax, weight", "softmax, dense"])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_compiled_it_is_the_same(reduction: str, row: str) -> None:
    name, targets, options = ROWS[row]
    x = X.clone().requires_grad_()
    call = lambda x: getattr(focal_ext, name)(x, targets, class_dim=1, reduction=reduction, **options)  # noqa: E731
    want = call(x)
    torch._dynamo.reset()
    got = torch.compile(call, fullgraph=True, backend="aot_eager")(x)
    assert torch.allclose(got, want) and torch.allclose(
        *(torch.autograd.grad(loss.square().sum(), x)[0] for loss in (got, want))
    )


def test_as_a_module_it_is_the_same() -> None:
    want = focal_ext.sigmoid_focal_loss(X, IDS, class_dim=1, reduction="sum")
    assert torch.equal(focal_ext.SigmoidFocalLoss(class_dim=1, reduction="sum")(X, IDS), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("loss", ["sigmoid_focal_loss", "softmax_focal_loss"])
def test_a_trace_holds_for_any_number_of_images(loss: str) -> None:
    class Network(torch.nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Tensor:
            result: Tensor = getattr(focal_ext, loss)(x * 1, ids, class_dim=1, reduction="sum")
            return result

    ids, network = IDS.clamp(min=0), Network()
    traced = torch.jit.trace(network, (X, ids))
    twice, ids_twice = torch.cat([X, X.flip(0)]), torch.cat([ids, ids.flip(0)])
    assert torch.allclose(traced(twice, ids_twice), network(twice, ids_twice), rtol=1e-10)


def wrong_calls() -> Iterator[tuple[dict[str, Any], type[Exception], str]]:
    yield {"class_dim": 4}, ValueError, r"class_dim: must be a dimension of inputs of shape \(2, 5, 7, 6\), got 4"
    yield {"class_dim": 1.0}, TypeError, r"class_dim: must be an integer, got float"
    yield {"class_dim": True}, TypeError, r"class_dim: must be an integer, got bool"
    yield (
        {"targets": IDS[:, :2]},
        ValueError,
        r"targets: with class_dim=1 shape must be \(2, 7, 6\) for class ids or \(2, 5, 7, 6\) for dense targets, got "
        r"\(2, 2, 6\)",
    )
    yield {"targets": 3}, TypeError, r"targets: must be a torch.Tensor.*int"
    yield (
        {"weight": OF_POSITIONS[:, 0]},
        ValueError,
        r"weight: with class_dim=1 must broadcast to inputs, \(2, 5, 7, 6\), got \(2, 7, 6\)",
    )
    yield (
        {"overwrite_inputs": True, "inputs": X.clone().requires_grad_()},
        ValueError,
        r"overwrite_inputs: inputs is a leaf that requires grad",
    )
    yield (
        {"targets": IDS.masked_fill(IDS == 3, 77)},
        ValueError,
        r"targets: class id 77 at anchor \d+ is outside \[0, 5\)",
    )


@implementations
@pytest.mark.parametrize("changed, exception, sentence", wrong_calls())
def test_a_wrong_argument_is_named(
    changed: dict[str, Any], exception: type[Exception], sentence: str, implementation: Implementation
) -> None:
    with pytest.raises(exception, match=sentence):
        implementation.module.sigmoid_focal_loss(
            **{"inputs": X, "targets": IDS, "class_dim": 1, "reduction": "sum", **changed}
        )


@implementations
def test_ids_that_fit_dimension_1_alone_get_the_hint(implementation: Implementation) -> None:
    with pytest.raises(ValueError, match=r"targets: shape must be .*pass class_dim=1$"):
        implementation.module.softmax_focal_loss(X, IDS)

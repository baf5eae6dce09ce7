# Owns: the convolution fused with its loss: its gradients against the plain chain in float64, autograd, autocast, the
# module.
# Must not know: formulas; how chunks are cut (test_chunks.py); errors (test_fused_head_errors.py).
from __future__ import annotations

from typing import Any

import focal_ext
import pytest
import torch
import torch.nn.functional as F
from pyramids import LAYOUTS, Shape, labels, maps
from test_autograd import Ops
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

fused = focal_ext.conv_sigmoid_focal_loss
CHANNELS, ANCHORS, CLASSES = 6, 3, 5
SIZES = ((9, 12), (5, 7), (3, 3))
PLANE = 9 * 12 * CLASSES * 4  # bytes of one anchor of one image on the finest level, in float32
BUDGETS = {
    "one chunk a level": 2**30,
    "one image": 3 * PLANE,
    "two anchors": 2 * PLANE,
    "one anchor": PLANE,
    "strips": PLANE // 3,
    "single rows": 1,
}
# In float32 the goal is 2e-6 of the norm; bfloat16 stores each chunk's gradient with 8 bits, float64 is the oracle's
# own arithmetic.
NEAR = {torch.float32: 2e-6, torch.bfloat16: 8e-3, torch.float64: 1e-14}


def geometry(kernel: int | tuple[int, int] = 3, stride: Any = 1, padding: Any = 1) -> dict[str, Any]:
    return {"kernel": kernel if isinstance(kernel, tuple) else (kernel, kernel), "stride": stride, "padding": padding}


GEOMETRIES = {
    "3x3": geometry(),
    "3x3, padding 0": geometry(padding=0),
    "3x3, stride 2": geometry(stride=2),
    "3x3, stride 2, padding 0": geometry(stride=2, padding=0),
    "1x1": geometry(1, 1, 0),
    "1x1, stride 3": geometry(1, 3, 0),
    "1x1, padding 2": geometry(1, 1, 2),
    "5x5": geometry(5, 1, 2),
    "3x1, stride (2, 1)": geometry((3, 1), (2, 1), (1, 0)),
    "2x2, padding 2": geometry(2, 2, 2),
}


class Given:
    """Features, parameters and labels of a head."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, layout: str = "contiguous", bias: bool = True, **about: Any
    ) -> None:
        about = about or geometry()
        self.conv = {"stride": about["stride"], "padding": about["padding"]}
        generator = torch.Generator().manual_seed(3)
        self.features = [x.detach().requires_grad_() for x in maps(Shape(2, 1, CHANNELS, SIZES), layout, dtype)]
        self.weight = (
            (torch.randn(ANCHORS * CLASSES, CHANNELS, *about["kernel"], generator=generator) * 0.1)
            .to(dtype)
            .requires_grad_()
        )
        self.bias = torch.randn(ANCHORS * CLASSES, generator=generator).to(dtype).requires_grad_() if bias else None
        with torch.no_grad():
            sizes = [tuple(F.conv2d(x, self.weight, None, **self.conv).shape[2:]) for x in self.features]
        self.shape = Shape(2, ANCHORS, CLASSES, sizes)
        self.ids = labels(self.shape)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.weight, self.bias, *self.features) if t is not None]

    def run(self, **options: Any) -> Tensor:
        return fused(self.features, self.weight, self.bias, self.ids, CLASSES, **{**self.conv, **options})

    def chain(self, **options: Any) -> Tensor:
        """The plain chain."""
        logits = [F.conv2d(x, self.weight, self.bias, **self.conv) for x in self.features]
        return focal_ext.pyramid.sigmoid_focal_loss(logits, self.ids, CLASSES, **options)

    def exact(self, **options: Any) -> list[Tensor]:
        """Loss and gradients of the plain chain in float64."""
        wide = [t.detach().double().requires_grad_() for t in self.leaves]
        weight, bias, features = (
            wide[0],
            wide[1] if self.bias is not None else None,
            wide[2 if self.bias is not None else 1 :],
        )
        logits = [F.conv2d(x, weight, bias, **self.conv) for x in features]
        options = {name: value.double() if isinstance(value, Tensor) else value for name, value in options.items()}
        loss = focal_ext.pyramid.sigmoid_focal_loss(logits, self.ids, CLASSES, **options)
        return [loss.detach(), *torch.autograd.grad(loss, wide)]


def assert_near(got: list[Tensor], want: list[Tensor], near: float) -> None:
    assert len(got) == len(want)
    for mine, right in zip(got, want):
        assert mine.shape == right.shape
        assert float((mine.double() - right).norm()) <= near * float(right.norm())


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", GEOMETRIES)
def test_gradients_are_those_of_the_plain_chain_at_every_geometry_and_budget(name: str, budget: str) -> None:
    given = Given(**GEOMETRIES[name])
    loss = given.run(normalizer="positives", memory_budget=BUDGETS[budget])
    assert loss.dtype == torch.float32 and loss.shape == ()
    gradients = torch.autograd.grad(loss, given.leaves)
    assert [g.dtype for g in gradients] == [t.dtype for t in given.leaves]
    assert_near([loss, *gradients], given.exact(normalizer="positives"), NEAR[torch.float32])


@pytest.mark.parametrize("dtype", NEAR, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", ["one chunk a level", "two anchors", "strips"])
def test_every_dtype_and_layout_of_the_features(budget: str, layout: str, dtype: torch.dtype) -> None:
    given = Given(dtype, layout)
    loss = given.run(normalizer="positives", memory_budget=BUDGETS[budget] * dtype.itemsize // 4)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_near([loss, *torch.autograd.grad(loss, given.leaves)], given.exact(normalizer="positives"), NEAR[dtype])


OPTIONS: dict[str, dict[str, Any]] = {
    "sum": {},
    "mean": {"reduction": "mean"},
    "float": {"normalizer": 7.0},
    "tensor": {"normalizer": torch.tensor(7.0)},
    "alpha off, gamma 0": {"alpha": None, "gamma": 0.0},
    "alpha of classes": {"alpha": torch.linspace(0.1, 0.9, CLASSES), "gamma": 1.7},
    "weight of images": {"weight": torch.tensor([[0.5], [3.0]])},
    "weight of anchors": {
        "weight": torch.rand(2, sum(Given().shape.counts), generator=torch.Generator().manual_seed(4))
    },
    "smoothing": {"label_smoothing": 0.1},
    "background ignored": {"ignore_index": -1},
    "ignored background, mean": {"ignore_index": CLASSES, "reduction": "mean"},
}


@pytest.mark.parametrize("budget", ["one image", "strips"])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_that_of_the_pyramid_op(name: str, budget: str) -> None:
    given = Given()
    if OPTIONS[name].get("ignore_index", -2) != -2:
        given.ids = given.ids.clamp(min=-1)
    loss = given.run(memory_budget=BUDGETS[budget], **OPTIONS[name])
    assert_near([loss, *torch.autograd.grad(loss, given.leaves)], given.exact(**OPTIONS[name]), NEAR[torch.float32])
    with torch.no_grad():
        assert torch.allclose(given.run(memory_budget=BUDGETS[budget], **OPTIONS[name]), loss, rtol=1e-6)


def test_a_list_of_targets_and_a_convolution_without_bias() -> None:
    given = Given(bias=False)
    want = given.exact(reduction="mean")
    given.ids = list(given.ids.split(given.shape.counts, dim=1))
    loss = given.run(reduction="mean", memory_budget=PLANE)
    assert_near([loss, *torch.autograd.grad(loss, given.leaves)], want, NEAR[torch.float32])


@pytest.mark.parametrize("count", [0, 1])
def test_no_image_and_an_empty_level_give_zeros(count: int) -> None:
    given = Given()
    given.features = [torch.randn(count, CHANNELS, *size).requires_grad_() for size in ((0, 4), (5, 0), *SIZES[:count])]
    given.ids = torch.full((count, sum(h * w * ANCHORS for h, w in SIZES[:count])), -1)
    gradients = torch.autograd.grad(given.run(normalizer="positives"), given.leaves)
    assert [g.shape for g in gradients] == [t.shape for t in given.leaves] and bool(gradients[0].any()) == bool(count)


@pytest.mark.parametrize("wanted", ["weight", "bias", "features", "one level", "weight and bias", "bias and one level"])
def test_gradients_are_computed_for_those_who_want_one_and_nobody_else(wanted: str) -> None:
    given = Given()
    everyone = dict(
        zip(("weight", "bias", "0", "1", "2"), torch.autograd.grad(given.run(memory_budget=PLANE), given.leaves))
    )
    groups = {
        "weight": ["weight"],
        "bias": ["bias"],
        "features": ["0", "1", "2"],
        "one level": ["1"],
        "weight and bias": ["weight", "bias"],
    }
    names = groups.get(wanted, ["bias", "1"])
    tensors = dict(zip(everyone, given.leaves))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name in names)
    loss = given.run(memory_budget=PLANE)
    got = torch.autograd.grad(loss, [tensors[name] for name in names])
    assert all(torch.allclose(a, everyone[name], rtol=1e-5, atol=1e-6) for a, name in zip(got, names))
    for tensor in given.leaves:
        tensor.requires_grad_(False)
    assert not given.run().requires_grad


def test_kept_graphs_factors_and_a_second_derivative() -> None:
    given = Given()
    loss = given.run(memory_budget=PLANE)
    once = torch.autograd.grad(loss, given.leaves, retain_graph=True)
    four = torch.autograd.grad(4 * loss, given.leaves, retain_graph=True)
    again = torch.autograd.grad(loss, given.leaves, retain_graph=True)
    assert all(torch.equal(a, b) and torch.equal(4 * a, c) for a, b, c in zip(once, again, four))
    with pytest.raises(RuntimeError, match="once differentiable.*create_graph=True.*pyramid.sigmoid_focal_loss"):
        torch.autograd.grad(loss, given.leaves, create_graph=True)
    last = torch.autograd.grad(4 * loss, given.leaves)
    assert all(torch.equal(a, b) for a, b in zip(last, four))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, given.leaves)


@pytest.mark.native
def test_each_chunk_is_convolved_once_in_each_direction_and_nothing_is_as_large_as_the_logits() -> None:
    given = Given()
    with Ops() as ops:
        given.run(memory_budget=PLANE, normalizer="positives").backward()
    # one anchor of one image on the finest level; four of them fit on the second (6 chunks of 35 of 108 positions: 3
    # anchors an image)
    assert ops.names.count("aten.convolution_backward") == 2 * 3 + 2 + 1
    assert ops.names.count("aten.convolution") + ops.names.count("aten.conv2d") == 2 * 3 + 2 + 1
    largest_feature = max(x.numel() for x in given.features)
    assert ops.largest <= max(largest_feature, given.ids.numel()) < 2 * ANCHORS * CLASSES * 9 * 12


def test_the_loss_and_the_gradients_are_the_same_every_time_and_inputs_stay_what_they_are() -> None:
    given = Given()
    before = [t.detach().clone() for t in given.leaves]
    first, second = (torch.autograd.grad(given.run(memory_budget=PLANE), given.leaves) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert all(torch.equal(a, b) and b._version == 0 for a, b in zip(before, given.leaves))


def test_autocast_casts_as_a_convolution_does() -> None:
    given = Given()
    given.features[1] = given.features[1].detach().bfloat16().requires_grad_()  # as a layer before it may leave it
    with torch.autocast("cpu", torch.bfloat16):
        loss, plain = given.run(memory_budget=PLANE), given.chain()
    gradients, want = (torch.autograd.grad(value, given.leaves) for value in (loss, plain))
    assert [g.dtype for g in gradients] == [t.dtype for t in given.leaves]
    # both see the same bfloat16 logits, up to the order of summation before the rounding
    assert torch.allclose(loss, plain, rtol=1e-3)
    assert_near([g.double() for g in gradients], [g.double() for g in want], NEAR[torch.bfloat16])
    with torch.autocast("cpu", torch.bfloat16):
        assert Given(torch.float64).run().dtype == torch.float64
    with torch.autocast("cpu", torch.float16), pytest.raises(TypeError, match="features: float16.*bfloat16"):
        given.run()


def test_transforms_and_aux_gradients_take_the_plain_chain() -> None:
    given = Given(torch.float64)
    want = torch.autograd.grad(given.run(), given.weight)[0]
    function = lambda w: fused(given.features, w, given.bias, given.ids, CLASSES)  # noqa: E731
    assert torch.allclose(torch.func.grad(function)(given.weight.detach()), want, rtol=1e-9, atol=1e-12)
    normalizer = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    loss = given.run(normalizer=normalizer)
    assert torch.allclose(torch.autograd.grad(loss, normalizer)[0], -loss / 4)


@pytest.mark.native
def test_a_compiled_function_holds_it_as_one_op() -> None:
    torch._dynamo.reset()
    given = Given()

    def function(*leaves: Tensor) -> Tensor:
        weight, bias, *features = leaves
        return 2 * fused([x.relu() for x in features], weight, bias, given.ids, CLASSES, memory_budget=PLANE)

    want = torch.autograd.grad(function(*given.leaves), given.leaves)
    counter = CompileCounterWithBackend("aot_eager")
    got = torch.autograd.grad(torch.compile(function, backend=counter, fullgraph=True)(*given.leaves), given.leaves)
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(got, want))
    assert [str(node.target) for node in counter.graphs[0].graph.nodes].count("focal_ext.conv_loss_and_gradients") == 1


def test_the_head_is_the_plain_convolution_without_targets_and_its_loss_with_them() -> None:
    given = Given()
    head = focal_ext.FusedFocalHead(CHANNELS, ANCHORS, CLASSES, prior=0.02, normalizer="positives", memory_budget=PLANE)
    plain = nn.Conv2d(CHANNELS, ANCHORS * CLASSES, 3, padding=1)
    plain.load_state_dict(head.state_dict())
    assert list(head.state_dict()) == ["weight", "bias"] and not isinstance(head, nn.Conv2d)
    assert torch.allclose(head.bias.sigmoid(), torch.tensor(0.02)) and float(head.weight.std()) == pytest.approx(
        0.01, rel=0.1
    )
    want = focal_ext.pyramid.sigmoid_focal_loss(
        [plain(x) for x in given.features], given.ids, CLASSES, normalizer="positives"
    )
    for training in (True, False):
        head.train(training)
        logits = head(given.features)
        assert isinstance(logits, list) and all(torch.equal(a, plain(x)) for a, x in zip(logits, given.features))
        assert torch.allclose(head(given.features, given.ids), want, rtol=1e-6)
    loss = head(given.features, given.ids)
    loss.backward()
    want.backward()
    assert torch.allclose(head.weight.grad, plain.weight.grad, rtol=1e-4, atol=1e-6)
    assert torch.allclose(
        head(given.features, given.ids, normalizer=2.0), 0.5 * head(given.features, given.ids, normalizer=1.0)
    )
    weighted = head(given.features, given.ids, weight=torch.full((2, 1), 3.0))
    assert torch.allclose(weighted, 3 * loss, rtol=1e-6)
    assert repr(head).startswith(
        f"FusedFocalHead({CHANNELS}, {ANCHORS}, {CLASSES}, kernel_size=3, alpha=0.25"
    ) and "memory_budget" in repr(head)


class LargestTensor(TorchDispatchMode):
    """The most elements that a result of an operation had."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.numel = max(self.numel, *(t.numel() for t in tree_flatten(result)[0] if isinstance(t, Tensor)), 0)
        return result


@pytest.mark.parametrize("training", [True, False])
def test_a_validation_loss_stores_no_logits(training: bool) -> None:
    given = Given()
    head = focal_ext.FusedFocalHead(CHANNELS, ANCHORS, CLASSES, memory_budget=PLANE // 3).train(training)
    with torch.no_grad():
        with LargestTensor() as of_loss:
            loss = head(given.features, given.ids)
        with LargestTensor() as of_logits:
            logits = head(given.features)
    assert (
        torch.allclose(loss, focal_ext.pyramid.sigmoid_focal_loss(logits, given.ids, CLASSES), rtol=1e-6)
        and not loss.requires_grad
    )
    assert of_logits.numel == logits[0].numel() and of_loss.numel < of_logits.numel / 3


@pytest.mark.parametrize("training", [True, False])
def test_a_head_refuses_what_it_cannot_take(training: bool) -> None:
    given, head = Given(), focal_ext.FusedFocalHead(CHANNELS, ANCHORS, CLASSES).train(training)
    for targets in ((), (given.ids,)):
        with pytest.raises(TypeError, match=r"^features: .*list.*\[features\]"):
            head(given.features[0], *targets)
    with pytest.raises(ValueError, match="^targets: needed with weight or normalizer"):
        head(given.features, normalizer=2.0)
    with pytest.raises(ValueError, match="^kernel_size: must be odd.*4"):
        focal_ext.FusedFocalHead(CHANNELS, ANCHORS, CLASSES, kernel_size=4)

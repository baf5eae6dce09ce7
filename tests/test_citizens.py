# Owns: features of PyTorch that a loss meets in training: compiled autograd, threads, offloading, deterministic mode,
# other devices.
# Must not know: values (test_values.py).
from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import focal_ext
import pytest
import torch
from cases import PUBLIC
from family import EVERYDAY, MEMBERS, Member, every_loss
from pairwise import taking_turns
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint

reductions = pytest.mark.parametrize("reduction", ["none", "sum"])
IDS = torch.randint(-2, 6, (64,), generator=torch.Generator().manual_seed(0))


def logits(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()


def gradient(loss_of: Member, reduction: str, factor: float = 1.0) -> Tensor:
    x = logits()
    return torch.autograd.grad(factor * loss_of(x, IDS, reduction=reduction).sum(), x)[0]


@taking_turns({"overwrite": (False, True)}, reduction=("none", "sum"), member=EVERYDAY)
def test_compiled_autograd_gives_the_eager_gradient(reduction: str, member: str, overwrite: bool) -> None:
    torch._dynamo.reset()
    loss_of = EVERYDAY[member]
    x, weight = logits(), torch.ones(5, requires_grad=True)
    loss = 3 * loss_of(x * weight, IDS, reduction=reduction, overwrite_inputs=overwrite).sum()
    with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager", fullgraph=not overwrite)):
        loss.backward()
    assert torch.allclose(x.grad, gradient(loss_of, reduction, 3.0), rtol=1e-6)


@every_loss
@reductions
def test_two_threads_run_backward_at_once(reduction: str, loss_of: Member) -> None:
    want, got, errors = gradient(loss_of, reduction), [], []

    def work() -> None:
        try:
            for _ in range(20):
                got.append(gradient(loss_of, reduction))
        except Exception as error:  # reported below, from the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not errors and len(got) == 40 and all(torch.equal(g, want) for g in got)


@pytest.mark.native
@reductions
def test_one_graph_kept_by_two_threads_at_once_gives_both_its_gradient(reduction: str) -> None:
    loss_of, x, got = MEMBERS["sigmoid focal"], logits(), {}
    loss = loss_of(x, IDS, reduction=reduction).sum()
    factors = (2.0, 3.0)
    threads = [
        threading.Thread(target=lambda f=f: got.update({f: torch.autograd.grad(f * loss, x, retain_graph=True)[0]}))
        for f in factors
    ]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    for f in factors:
        assert torch.allclose(got[f], gradient(loss_of, reduction, f), rtol=1e-6)


@every_loss
@reductions
def test_offloaded_tensors_and_checkpoints_inside_each_other_give_the_same_gradient(
    reduction: str, loss_of: Member
) -> None:
    x, want = logits(), gradient(loss_of, reduction)
    with torch.autograd.graph.save_on_cpu(pin_memory=False):
        loss = checkpoint(lambda x: loss_of(x * 1, IDS, reduction=reduction).sum(), x, use_reentrant=False)
    assert torch.equal(torch.autograd.grad(loss, x)[0], want)
    with torch.autograd.graph.save_on_cpu():
        loss = loss_of(x, IDS, reduction=reduction).sum()
    assert all(torch.equal(torch.autograd.grad(loss, x, retain_graph=True)[0], want) for _ in range(3))


@every_loss
@reductions
def test_deterministic_mode_is_no_error_and_changes_no_bit(reduction: str, loss_of: Member) -> None:
    want = gradient(loss_of, reduction)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.equal(gradient(loss_of, reduction), want)
    finally:
        torch.use_deterministic_algorithms(False)


@every_loss
@reductions
def test_meta_and_fake_tensors_have_shape_and_dtype_of_the_real_ones(reduction: str, loss_of: Member) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        real = loss_of(logits(dtype), IDS, reduction=reduction)
        x = torch.empty(64, 5, dtype=dtype, device="meta", requires_grad=True)
        loss = loss_of(x, IDS.to("meta"), reduction=reduction)
        loss.sum().backward()
        assert (loss.shape, loss.dtype, x.grad.shape, x.grad.dtype) == (real.shape, real.dtype, x.shape, dtype)
        with FakeTensorMode():
            x = torch.empty(64, 5, dtype=dtype, requires_grad=True)
            loss = loss_of(x, torch.empty(64, dtype=torch.int64), reduction=reduction)
            loss.sum().backward()
        assert (loss.shape, loss.dtype, x.grad.shape, x.grad.dtype) == (real.shape, real.dtype, x.shape, dtype)


@pytest.mark.native
@every_loss
def test_a_device_without_kernels_takes_the_reference(loss_of: Member, monkeypatch: pytest.MonkeyPatch) -> None:
    from focal_ext import _native

    assert _native.runs_on(torch.device("cpu"))
    assert not any(_native.runs_on(torch.device(name)) for name in ("meta", "mps", "xpu", "privateuseone", "hpu"))
    seen = []
    monkeypatch.setattr(_native, "runs_on", lambda device: seen.append(device) and False)
    want = getattr(focal_ext.reference, loss_of.loss)
    x = logits()
    assert (
        torch.equal(
            loss_of(x, IDS, reduction="sum"),
            loss_of.on(PUBLIC._replace(module=focal_ext.reference))(x, IDS, reduction="sum"),
        )
        and seen
        and want
    )


@every_loss
def test_a_loss_trains_a_layer_with_half_precision_autocast_and_a_grad_scaler(loss_of: Member) -> None:
    layer = nn.Linear(8, 5)
    optimizer, scaler = torch.optim.SGD(layer.parameters(), 0.05), torch.amp.GradScaler("cpu", init_scale=2.0**10)
    features, ids, losses = torch.randn(64, 8), torch.randint(-1, 5, (64,)), []
    for _ in range(30):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = loss_of(layer(features), ids, reduction="sum", normalizer="positives")
        assert loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.97 * losses[0] and all(p.isfinite().all() for p in layer.parameters())


FORBIDDEN = (
    r"cudaMalloc|cudaFree|cudaDeviceSynchronize|cudaStreamSynchronize|cudaMemcpy\b|cudaEventSynchronize|"
    r"cudaGetDeviceProperties|cudaStreamCreate|aoti_torch_item|\.item<"
)


def test_launches_allocate_nothing_themselves_and_never_wait_for_the_device() -> None:
    root = Path(__file__).resolve().parents[1]
    files = [
        *(root / "csrc").rglob("*.cu"),
        *(root / "csrc").rglob("*.cuh"),
        root / "csrc/ops.cpp",
        *(root / "csrc/cuda").glob("*.h"),
    ]
    found = [
        f"{path.name}: {line.strip()}"
        for path in files
        for line in path.read_text().splitlines()
        if re.search(FORBIDDEN, line)
    ]
    assert len(files) > 5 and not found


def recorded(work: Any) -> list[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        work()
    return [event.key for event in profiler.key_averages()]


@pytest.mark.native
@every_loss
def test_the_profiler_sees_one_op_forward_and_at_most_a_product_backward(loss_of: Member) -> None:
    x = logits()
    loss_of(x, IDS, reduction="sum").backward()
    seen = [
        name for name in recorded(lambda: loss_of(x, IDS, reduction="sum").backward()) if name.startswith("focal_ext::")
    ]
    assert seen == ["focal_ext::loss_and_gradient"]


class Silent(Tensor):
    """A tensor whose value nobody may read."""

    @staticmethod
    def __new__(cls, inside: Tensor) -> Silent:
        return Tensor._make_wrapper_subclass(cls, inside.shape, dtype=inside.dtype, device=inside.device)

    def __init__(self, inside: Tensor) -> None:
        self.inside = inside

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket is not torch.ops.aten._local_scalar_dense
        plain = tree_map(lambda a: a.inside if isinstance(a, Silent) else a, (args, kwargs or {}))
        return tree_map(lambda a: Silent(a) if isinstance(a, Tensor) else a, function(*plain[0], **plain[1]))


SILENT = {
    "weight": lambda x, s: focal_ext.sigmoid_focal_loss(x, IDS, weight=s(torch.ones(5)), reduction="sum"),
    "alpha": lambda x, s: focal_ext.softmax_focal_loss(x, IDS.clamp(0, 4), alpha=s(torch.ones(5)), reduction="mean"),
    "normalizer": lambda x, s: focal_ext.sigmoid_focal_loss(x, IDS, normalizer=s(torch.tensor(2.0)), reduction="sum"),
    "scores": lambda x, s: focal_ext.quality_focal_loss(x, (IDS, s(torch.ones(64))), reduction="sum"),
    "weight of a pyramid": lambda x, s: focal_ext.pyramid.sigmoid_focal_loss(
        [x.reshape(1, 5, 8, 8)], IDS[None], 5, weight=s(torch.ones(1, 1))
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_nothing_is_read_from_a_tensor_subclass_beside_plain_logits(name: str) -> None:
    x = logits().detach()
    torch.testing.assert_close(SILENT[name](x, Silent).inside, SILENT[name](x, torch.clone), rtol=1e-6, atol=0)
    with pytest.raises(ValueError, match="class id 9 at anchor 3"):  # ids are plain, so they are checked as ever
        focal_ext.sigmoid_focal_loss(
            x, torch.where(torch.arange(64) == 3, 9, IDS), weight=Silent(torch.ones(5)), reduction="sum"
        )


@pytest.mark.parametrize("name", ["rows", "unreduced", "pyramid"])
def test_an_upstream_factor_may_be_a_tensor_subclass(name: str) -> None:
    x = logits()
    loss = (
        focal_ext.pyramid.sigmoid_focal_loss([x.reshape(1, 5, 8, 8)], IDS[None], 5)
        if name == "pyramid"
        else focal_ext.sigmoid_focal_loss(x, IDS, reduction="sum" if name == "rows" else "none")
    )
    (want,) = torch.autograd.grad(loss, x, 2 * torch.ones_like(loss), retain_graph=True)
    (got,) = torch.autograd.grad(loss, x, Silent(2 * torch.ones_like(loss)))
    torch.testing.assert_close(got.inside, want, rtol=1e-6, atol=0)

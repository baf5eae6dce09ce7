# Owns: how the ops behave towards a GPU: streams, devices, waiting, memory, bad ids, the product that is skipped.
# Must not know: values (test_accuracy.py, ../test_values.py), graphs (test_graphs.py).
from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import focal_ext
import pytest
import torch
from device_step import CALLS, CLASSES, DTYPES, arguments
from focal_ext._native import ops
from torch import Tensor

calls = pytest.mark.parametrize("call", CALLS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
reduced = pytest.mark.parametrize("call", ["sum over positives", "softmax, sum over positives"])
LONG = 1_000_000_000  # clock cycles: more than 0.3 s on any chip
ROUNDED_UP = 2**21  # torch's allocator hands out up to 2 MiB more than it is asked for


@contextmanager
def waiting_is_an_error() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_kernels_are_in_use_and_not_the_reference() -> None:
    from focal_ext import _native

    assert _native.runs_on(torch.device("cuda"))
    x = torch.randn(8, 5, device="cuda", requires_grad=True)
    loss = focal_ext.sigmoid_focal_loss(x, torch.zeros(8, dtype=torch.int64, device="cuda"), reduction="sum")
    assert type(loss.grad_fn).__name__ == "_OnePassBackward"


@calls
@dtypes
def test_a_step_never_makes_the_host_wait(call: str, dtype: torch.dtype) -> None:
    made = arguments(call, dtype)
    made.step()  # loads the kernels, fills torch's cache of memory
    torch.cuda.synchronize()
    with waiting_is_an_error():  # what torch knows of
        torch.cuda._sleep(LONG)
        made.step()
        done = torch.cuda.Event()
        done.record()
    assert not done.query()  # whoever waited
    done.synchronize()


@calls
def test_everything_runs_on_the_current_stream(call: str) -> None:
    made = arguments(call)
    want = made.step()
    made.step()
    values = made.inputs.detach().clone()
    with torch.no_grad():
        made.inputs.fill_(torch.nan)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(LONG // 10)
        with torch.no_grad():
            made.inputs.copy_(values)  # comes after the sleep: a kernel on another stream sees NaN
        got = made.step()
    stream.synchronize()
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


if torch.cuda.device_count() > 1:

    @calls
    def test_the_second_device_works_while_the_first_is_current(call: str) -> None:
        first, second = (arguments(call, device=f"cuda:{i}") for i in (0, 1))
        second.options.update(
            {name: value.to("cuda:1") for name, value in first.options.items() if isinstance(value, Tensor)}
        )
        with torch.cuda.device(0):
            for got, want in zip(second.step(), first.step()):
                assert got.device == torch.device("cuda:1")
                assert torch.allclose(got.cpu(), want.cpu(), rtol=1e-5)


@reduced
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_a_step_holds_the_gradient_and_little_else(dtype: torch.dtype, call: str) -> None:
    made = arguments(call, dtype, rows=50_000)
    made.step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    held = made.step()
    assert torch.cuda.max_memory_allocated() - before <= made.inputs.nbytes + ROUNDED_UP
    assert held[1].nbytes == made.inputs.nbytes


@reduced
@dtypes
def test_backward_writes_the_gradient_over_the_logits_and_allocates_nothing_of_their_size(
    dtype: torch.dtype, call: str
) -> None:
    made = arguments(call, dtype, rows=50_000)
    _, want = made.step()
    for factor in (1.0, 4.0):
        inner = made.inputs.clone()
        loss = getattr(focal_ext, made.loss)(inner, made.targets, overwrite_inputs=True, **made.options)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        (got,) = torch.autograd.grad(factor * loss, inner)
        assert torch.cuda.max_memory_allocated() - before <= ROUNDED_UP
        assert got.data_ptr() == inner.data_ptr()
        if dtype != torch.float16:  # where rounding comes after the factor, and a subnormal has lost bits before it
            assert torch.equal(got, want * factor)


def test_scaling_by_1_touches_nothing() -> None:
    pattern = 0x7FA00001  # a signalling NaN: any product would return another one
    gradient = torch.full((100_003,), pattern, dtype=torch.int32, device="cuda")
    ops.scale_(gradient.view(torch.float32), torch.ones((), device="cuda"))
    assert (gradient == pattern).all()
    ops.scale_(gradient.view(torch.float32), torch.full((), 3.0, device="cuda"))
    assert (gradient != pattern).all()


@dtypes
@pytest.mark.parametrize("ids", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_a_bad_id_makes_its_row_nan_and_no_other(ids: torch.dtype, dtype: torch.dtype) -> None:
    x = torch.randn(300, CLASSES, device="cuda", dtype=torch.float64).to(dtype).requires_grad_()
    targets = torch.full((300,), CLASSES, device="cuda", dtype=ids)
    targets[[7, 131, 299]] = 93
    targets[[8, 130]] = 3
    with waiting_is_an_error():
        loss = focal_ext.sigmoid_focal_loss(x, targets)
        (gradient,) = torch.autograd.grad(loss, x, torch.ones_like(loss))
        total = focal_ext.sigmoid_focal_loss(x, targets, reduction="sum", normalizer="positives")
        (scaled,) = torch.autograd.grad(total, x)
    for result in (loss, gradient, scaled):
        assert result.isnan().all(1).nonzero().flatten().tolist() == [7, 131, 299]
        assert int(result.isnan().sum()) == 3 * CLASSES
    assert total.isnan()

# Owns: capture and replay of forward and backward in a CUDA graph.
# Must not know: what the right values are: eager calls say that.
#
# Capture itself proves something: a memory allocation outside torch's allocator or a synchronisation would fail it.
from __future__ import annotations

import pytest
import torch
from device_step import CALLS, DTYPES, arguments


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("call", CALLS)
def test_a_replayed_graph_gives_the_bits_of_eager_calls_for_new_logits_and_labels(
    call: str, dtype: torch.dtype
) -> None:
    static = arguments(call, dtype)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # as torch's notes on graphs ask: first steps outside, on another stream
        for _ in range(3):
            static.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, gradient = static.step()
    for seed in (1, 2, 3):
        static.refill(seed)
        graph.replay()
        fresh = arguments(call, dtype)
        fresh.options.update(static.options)
        fresh.refill(seed)
        eager_loss, eager_gradient = fresh.step()
        assert torch.equal(loss, eager_loss) and torch.equal(gradient, eager_gradient)
        assert loss.isfinite().all() and gradient.any()

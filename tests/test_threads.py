# Owns: calls from several threads at once: the user's, torch's, and processes forked from one that has used them.
# Must not know: what the right results are (test_values.py).
from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Iterator

import focal_ext
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

CALLS = 6
# Each is a call on its own data: sizes of one chunk and of several, all dtypes, every path of autograd.
KINDS = (
    {"dtype": torch.float32, "rows": 700, "options": {"reduction": "sum", "normalizer": "positives"}},
    {"dtype": torch.float32, "rows": 20, "options": {"reduction": "mean", "gamma": 1.5}},
    {"dtype": torch.bfloat16, "rows": 700, "options": {"reduction": "none", "alpha": None}},
    {"dtype": torch.float16, "rows": 500, "options": {"reduction": "sum"}},
    {"dtype": torch.float64, "rows": 400, "options": {"reduction": "mean", "gamma": 0.0}},
    {"dtype": torch.float32, "rows": 700, "options": {"reduction": "sum", "overwrite_inputs": True}},
)


def call(kind: int) -> tuple[Tensor, Tensor]:
    """Loss and gradient of a call that depends on nothing but its number."""
    rng, of = torch.Generator().manual_seed(kind), KINDS[kind % len(KINDS)]
    leaf = (torch.randn(of["rows"], 80, generator=rng) * 4).to(of["dtype"]).requires_grad_()
    ids = torch.randint(-2, 81, (of["rows"],), generator=rng)
    loss = focal_ext.sigmoid_focal_loss(leaf * 1, ids, **of["options"])
    loss.sum().backward()
    return loss.detach(), leaf.grad


def same(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.fixture
def expected() -> list[tuple[Tensor, Tensor]]:
    return [call(kind) for kind in range(CALLS)]


@pytest.fixture(params=[1, 3], ids="{} torch threads".format)
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(1)


def test_calls_from_the_users_threads_at_once_give_what_each_gives_alone(
    expected: list[tuple[Tensor, Tensor]], torch_threads: int
) -> None:
    start, wrong = threading.Barrier(CALLS), []

    def work(kind: int) -> None:
        torch.set_num_threads(torch_threads)  # a thread has a setting of its own
        start.wait()
        for turn in range(CALLS):
            at = (kind + turn) % CALLS
            if not same(call(at), expected[at]):
                wrong.append((kind, at))

    threads = [threading.Thread(target=work, args=(kind,)) for kind in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads) and not wrong


def test_one_loss_may_be_differentiated_from_several_threads(expected: list[tuple[Tensor, Tensor]]) -> None:
    """The graph is kept: the stored gradient must not be scaled in place by one thread under the others' feet."""
    leaf = torch.randn(700, 80, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = focal_ext.sigmoid_focal_loss(leaf, torch.randint(-1, 80, (700,)), reduction="sum")
    whole = torch.autograd.grad(loss, leaf, retain_graph=True)[0]
    got: dict[int, Tensor] = {}

    def work(power: int) -> None:
        got[power] = torch.autograd.grad(loss, leaf, torch.tensor(2.0**power), retain_graph=True)[0]

    threads = [threading.Thread(target=work, args=(power,)) for power in range(CALLS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(got) == list(range(CALLS))
    assert all(torch.equal(got[power], whole * 2.0**power) for power in got)


class Losses(Dataset):
    def __len__(self) -> int:
        return 2 * CALLS

    def __getitem__(self, index: int) -> tuple[int, Tensor, Tensor]:
        return (index, *call(index % CALLS))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader_compute_losses(method: str, expected: list[tuple[Tensor, Tensor]]) -> None:
    torch.set_num_threads(3)
    assert same(call(0), expected[0])  # the process that is forked has used its threads, which its children do not have
    loader = DataLoader(
        Losses(),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context(method),
        timeout=120,
    )
    got = {index: (loss, gradient) for index, loss, gradient in loader}
    torch.set_num_threads(1)
    assert sorted(got) == list(range(2 * CALLS))
    assert all(same(got[index], expected[index % CALLS]) for index in got)

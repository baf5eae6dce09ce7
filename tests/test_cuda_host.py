# Owns: the CUDA kernels' own source, run on a device made of a CPU, against the same table of cases as the CPU kernels.
# Must not know: formulas. How the device works is tests/cuda_host; sanitizers and planted defects are tests/kernels.
from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import Any

import focal_ext
import pytest
import test_batch_dims
import test_empty
import test_extremes
import torch
from cases import ID_DTYPES, PUBLIC, Case
from cuda_host import build, family, table
from cuda_host.defects import NUMBER
from cuda_host.ops import HostOps
from family import MEMBERS, Member
from focal_ext import _arguments, _autograd
from focal_ext._spec import LOSSES
from pairwise import rows_of_every_pair
from torch import Tensor

pytestmark = [
    pytest.mark.native,
    pytest.mark.skipif(
        build.why_impossible() is not None, reason=f"the kernels cannot be compiled here: {build.why_impossible()}"
    ),
]
FLAVOUR = os.environ.get("CUDA_HOST_FLAVOUR", "plain")
PACKED = FLAVOUR if FLAVOUR.startswith("packed") else f"packed_{FLAVOUR}"
DEFECT = os.environ.get("CUDA_HOST_DEFECT", "none")
# logits of a row: under ThreadSanitizer all is a hundred times slower
LARGEST = int(os.environ.get("CUDA_HOST_LARGEST", 2**31))
SEED = int(os.environ.get("CUDA_HOST_SEED", random.randrange(2**32)))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIGNALLING_NAN = {
    torch.float32: 0x7F800001,
    torch.bfloat16: 0x7F81,
    torch.float16: 0x7C01,
    torch.float64: 0x7FF0000000000001,
}
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
grids = pytest.mark.parametrize("grid", table.GRIDS)
module = cache(build.load)


# Of the rows of the focal loss and of the other losses, every which one a flavour has time for. A race or a far read
# lies in code that losses share.
EVERY = {"plain": (1, 1), "address": (3, 4), "thread": (3, 12)}[FLAVOUR.removeprefix("packed_")]


# Without a sanitizer half of the table of cases: tests/kernels/test_whole_table.py has all of it on another grid. What
# only these kernels have, the rows of their streams, is here as a whole.
CHOSEN = {*table.STREAMS, *table.CASES[:: 2 if FLAVOUR == "plain" else 1]}


def small(rows: Iterable[Any]) -> list[Any]:
    """Rows that the flavour has time for; of those of the focal loss at least one of each kernel."""
    chosen = [case for case in rows if torch.Size(case.shape).numel() <= LARGEST]
    kernels = {
        (case.dtype, case.is_dense, case.gamma): case
        for case in reversed(chosen)
        if getattr(case, "loss", None) == table.LOSS
    }
    return [
        case
        for i, case in enumerate(chosen)
        if i % EVERY[getattr(case, "loss", None) != table.LOSS] == 0 or case in kernels.values()
    ]


@pytest.fixture(autouse=True)
def public_functions_on_host_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FLAVOUR, table.GRIDS[-1])
    print(f"CUDA_HOST_SEED={SEED} gives the same order of blocks and threads")  # shown where a test fails


def use(monkeypatch: pytest.MonkeyPatch, flavour: str, grid: int) -> None:
    """From here to the end of the test autograd calls these kernels."""
    module(flavour).set_seed(SEED)
    module(flavour).plant(NUMBER[DEFECT])
    monkeypatch.setattr(_autograd, "ops", HostOps(module(flavour), grid, table.TILES_OF[grid]))


def ops(grid: int = table.GRIDS[-1]) -> HostOps:
    return HostOps(module(FLAVOUR), grid)


def bits(result: Tensor) -> bytes:
    return result.reshape(-1).view(torch.uint8).numpy().tobytes()


def call(
    x: Tensor,
    targets: Tensor,
    alpha: object = 0.25,
    gamma: float = 2.0,
    reduction: str = "sum",
    normalizer: object = None,
    weight: Tensor | None = None,
) -> tuple:
    return focal_ext.sigmoid_focal_loss.__wrapped__(
        x, targets, alpha, gamma, reduction, normalizer=normalizer, weight=weight
    ).call


@pytest.mark.parametrize("case", [case for case in small(table.ROWS) if case in CHOSEN], ids=str)
def test_loss_and_gradient_are_those_of_the_float64_reference(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, FLAVOUR, table.GRID_OF[case])
    table.check(case, table.GRID_OF[case])


# Of a sum over its positives: the scan of the labels, the main kernel, the last step; groups have divisors too. In
# fp16 backward computes the gradient, by the factor from above, and scans again what it is divided by.
@pytest.mark.parametrize("overwrite", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("batch_dims", (0, 1))
@pytest.mark.parametrize("loss", ("sigmoid_focal_loss", "softmax_focal_loss"))
def test_forward_launches_three_kernels_and_backward_one_and_groups_no_more_by_their_number(
    loss: str, batch_dims: int, dtype: torch.dtype, overwrite: bool
) -> None:
    x = torch.zeros(9, 16, 16, dtype=dtype).requires_grad_()
    ids = torch.arange(9 * 16).reshape(9, 16) % 16
    shared = {"reduction": "sum", "normalizer": "positives", "batch_dims": batch_dims, "overwrite_inputs": overwrite}
    begin = module(FLAVOUR).launches()
    result = getattr(focal_ext, loss)(x + 0 if overwrite else x, ids, **shared)
    between = module(FLAVOUR).launches()
    (3 * result.sum()).backward()
    recomputed = 2 + batch_dims if dtype is torch.float16 else 1  # else scaled
    assert between - begin == 3 + batch_dims and module(FLAVOUR).launches() - between == recomputed


@pytest.mark.parametrize("case", [case for case in small(table.rows_that_stream()) if case in CHOSEN], ids=str)
def test_two_numbers_per_instruction_are_as_good(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, PACKED, table.GRID_OF[case])
    table.check(case, table.GRID_OF[case])


@pytest.mark.parametrize("grid, row", list(zip(itertools.cycle(table.GRIDS), small(family.ROWS))), ids=str)
def test_the_other_losses_move_no_further_from_the_reference_than_their_terms_allow(
    row: family.Row, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FLAVOUR, grid)
    family.check(row, grid)


@pytest.mark.parametrize(
    "grid, row", list(zip(itertools.cycle(table.GRIDS), small(r for r in family.ROWS if r.dtype != "float64"))), ids=str
)
def test_two_numbers_per_instruction_are_as_good_for_the_other_losses(
    row: family.Row, grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, PACKED, grid)
    family.check(row, grid)


BATCHES = list(
    zip(itertools.cycle(table.GRIDS), rows_of_every_pair(test_batch_dims.AXES, test_batch_dims.is_possible, seed=1))
)


@pytest.mark.parametrize(
    "grid, row",
    BATCHES[:: EVERY[0]],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_a_loss_for_each_index_of_a_batch_is_that_of_a_call_of_its_own(
    row: dict[str, Any], grid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FLAVOUR, grid)
    # 2.5e-5 is the budget of the stream of half types (table.py)
    test_batch_dims.check(getattr(focal_ext, row["loss"]), **row, error=3e-5)


@grids
@dtypes
def test_groups_whose_factor_is_1_are_not_scaled(dtype: torch.dtype, grid: int) -> None:
    for size in (1, 7, 8, 100, 4099):  # groups that begin anywhere
        integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
        gradient = torch.full((33, size), SIGNALLING_NAN[dtype], dtype=integer).view(dtype)
        gradient[1::2] = 0.5
        ops(grid).scale_(gradient, torch.tensor([1.0, 3.0] * 16 + [1.0], dtype=_arguments.accumulation_dtype(dtype)))
        assert (gradient.view(integer)[::2] == SIGNALLING_NAN[dtype]).all() and (gradient[1::2] == 1.5).all()


@pytest.mark.parametrize("dtype, formula", list(itertools.product(DTYPES, family.FORMULAS))[:: EVERY[1]], ids=str)
def test_a_bad_id_makes_a_row_of_the_other_losses_nan_and_no_other(dtype: torch.dtype, formula: str) -> None:
    (loss, options), classes = family.FORMULAS[formula], 91
    x, ids, scores = (torch.randn(41, classes) * 4).to(dtype), torch.randint(-2, classes + 1, (41,)), torch.rand(41)
    results = []
    for bad in (-1, -7):  # as a background, then
        ids[[3, 29]] = bad
        targets = (ids, scores) if getattr(focal_ext, loss).spec.needs_scores else ids
        checked = getattr(focal_ext, loss).__wrapped__(x, targets, **options, reduction="sum").call
        results.append((ops().loss_map(x, *checked), ops().loss_and_gradient(x, *checked)[1]))
    for clean, got in zip(*results):
        assert got[[3, 29]].isnan().all() and not clean.isnan().any()
        got[[3, 29]] = clean[[3, 29]]
        assert bits(got) == bits(clean)


@dtypes
def test_a_loss_whose_negatives_are_no_focal_loss_s_needs_nothing_beyond_its_formula(dtype: torch.dtype) -> None:
    """Poly-1 of tests/derivatives, of class ids with a weight for each class, as loss, gradient and map."""
    x, ids, weight = (torch.randn(301, 7) * 6).to(dtype), torch.randint(-2, 8, (301,)), torch.rand(1, 7)
    x[7, 2], x[7, 3], ids[7] = torch.inf, -torch.inf, -1
    pair, epsilon = (ids, torch.ones(301)), 2.0
    checked = focal_ext.quality_focal_loss.__wrapped__(x, pair, 0.0, reduction="sum", weight=weight).call
    checked = checked._replace(loss=len(LOSSES), numbers=(*checked.numbers[:3], epsilon), scores=None)
    gradient, loss_map = ops().loss_and_gradient(x, *checked)[1], torch.empty_like(x)
    ops().run(x, checked, loss_map=loss_map)
    z, t = x.double().requires_grad_(), (ids[:, None] == torch.arange(7)).double()
    factor = weight.double() * (ids != -2)[:, None]
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(z, t, reduction="none")
    want = factor * (entropy + epsilon * (z * (1 - 2 * t)).sigmoid())
    finite = x.isfinite()
    (slope,) = torch.autograd.grad(want[finite].sum(), z)
    slope[7, 2], slope[7, 3] = factor[7, 2], 0
    tolerance = (torch.finfo(dtype).eps if dtype.itemsize == 2 else 3e-6 if dtype == torch.float32 else 1e-12, 1e-7)
    for got, right in ((loss_map[finite], want[finite]), (gradient, slope)):
        torch.testing.assert_close(got.double(), right, rtol=tolerance[0], atol=tolerance[1])
    assert loss_map[7, 2] == torch.inf and loss_map[7, 3] == 0


@pytest.mark.parametrize(
    "case", [case for case in small(table.STREAMS) if case.shape[-1] in (3, 91)][:: EVERY[0]], ids=str
)
def test_grid_and_order_of_blocks_leave_every_bit_of_maps_and_every_repetition_leaves_all(case: Case) -> None:
    x, targets, options, upstream = table.call_of(case)
    checked = call(x, targets, options["alpha"], options["gamma"], options["reduction"], options["normalizer"])
    results = {}
    for grid in table.GRIDS:
        loss, gradient = ops(grid).loss_and_gradient(x, *checked)
        again, _ = ops(grid).loss_and_gradient(x, *checked)
        assert bits(loss) == bits(again) == bits(ops(grid).loss(x, *checked))
        results[grid] = (
            bits(gradient)
            + bits(ops(grid).loss_map(x, *checked))
            + bits(ops(grid).gradient(x, *checked, _autograd._upstream(x, upstream)))
        )
    assert len(set(results.values())) == 1


@dtypes
@grids
@pytest.mark.parametrize("upstream", ["one", "factor", "map"])
@pytest.mark.parametrize("targets", ["ids", "negatives", "dense", "mask"])
def test_the_gradient_may_replace_the_logits(targets: str, upstream: str, grid: int, dtype: torch.dtype) -> None:
    x = (torch.randn(41, 91) * 4).to(dtype)
    chosen = {
        "ids": torch.randint(-2, 92, (41,)),
        "negatives": torch.full((41,), -1),
        "dense": torch.rand(41, 91).to(dtype),
        "mask": torch.rand(41, 91) < 0.5,
    }[targets]
    factor = {"one": torch.ones(()), "factor": torch.tensor(3.0), "map": torch.rand(41, 91)}[upstream]
    factor = factor.to(dtype if upstream == "map" else _arguments.accumulation_dtype(dtype))
    checked = call(x, chosen, normalizer=7.3)
    ours = HostOps(module(FLAVOUR), grid, table.TILES_OF[grid])
    want = ours.gradient(x, *checked, factor)
    ours.gradient_(x, *checked, factor)
    assert bits(x) == bits(want)


@dtypes
@grids
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_scale_multiplies_in_place_and_writes_nothing_for_a_factor_of_1(
    offset: int, grid: int, dtype: torch.dtype
) -> None:
    one, third = (torch.tensor(f, dtype=_arguments.accumulation_dtype(dtype)) for f in (1.0, 1 / 3))
    for numel in (0, 1, 2, 7, 8, 4096 + 5, 70_001):
        memory = torch.randn(numel + offset + 3).to(dtype)
        part = memory[offset : offset + numel]
        want = memory.clone()
        want[offset : offset + numel] = (want[offset : offset + numel].to(third.dtype) * third).to(dtype)
        ops(grid).scale_(part, third)
        assert bits(memory) == bits(want)
    signalling = torch.full(
        (1003,), SIGNALLING_NAN[dtype], dtype={2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    )
    memory = signalling.view(dtype)  # any product, by 1 too, would make it a quiet one
    before = bits(memory)
    assert memory.isnan().all()
    ops(grid).scale_(memory[offset:], one)
    assert bits(memory) == before


@pytest.mark.parametrize("name", ID_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bad_id_makes_its_row_nan_and_no_other(dtype: torch.dtype, name: str) -> None:
    id_dtype = getattr(torch, name)
    limits, classes = torch.iinfo(id_dtype), 91
    x, ids = (torch.randn(41, classes) * 4).to(dtype), torch.randint(0, classes + 1, (41,))
    bad = torch.zeros(41, dtype=torch.bool)
    if name == "uint64":  # beyond int64: as a signed number it would be -1, a background
        ids = ids.to(id_dtype)
        ids.view(torch.int64)[7] = -1
        bad[7] = True
    else:
        values = [
            v for v in (classes + 1, -3, limits.min, limits.max) if limits.min <= v <= limits.max and v not in (0, -2)
        ]
        rows = torch.arange(3, 3 + 9 * len(values), 9)
        ids[rows], bad[rows] = torch.tensor(values), True
        ids = ids.to(id_dtype)
    checked = call(x, ids, normalizer="positives")
    clean = torch.where(bad, classes, ids.to(torch.int64))
    want, (loss, gradient) = ops().loss_map(x, *call(x, clean)), ops().loss_and_gradient(x, *checked)
    for result in (ops().loss_map(x, *checked), gradient):
        assert result[bad].isnan().all() and not result[~bad].isnan().any()
    assert bits(ops().loss_map(x, *checked)[~bad]) == bits(want[~bad]) and loss.isnan() and bad.any()


@dtypes
@pytest.mark.parametrize("shape", [(0, 80), (5, 0), (0, 0), (2, 0, 4)], ids=str)
def test_no_logits_give_0_and_touch_nothing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.empty(shape, dtype=dtype)
    for targets, normalizer in (
        (torch.zeros(shape[:-1], dtype=torch.int64), "positives"),
        (torch.zeros(shape), None),
        (torch.zeros(shape[:-1], dtype=torch.uint8), 0.5),
    ):
        checked = call(x, targets, normalizer=normalizer)
        assert ops().loss(x, *checked) == 0 and ops().loss_and_gradient(x, *checked)[0] == 0
        assert ops().loss_map(x, *checked).shape == shape


@pytest.mark.parametrize(
    "kernel, sentence",
    [
        ("skip_a_shuffle", "threads wait for others that will never come"),
        ("meet_at_two_places", "threads meet at a? ?(ballot|__syncwarp) and"),
    ],
)
def test_a_kernel_that_would_hang_is_an_error_and_the_device_goes_on(kernel: str, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        getattr(module(FLAVOUR), kernel)()
    table.check(table.ROWS[0], table.GRIDS[-1])


def served(
    loss_of: Member = MEMBERS["sigmoid focal"],
    member: str = "sigmoid focal",
    loss: str = table.LOSS,
    parameters: dict[str, Any] | None = None,
    **_: Any,
) -> bool:
    """Whether there are CUDA kernels for the loss that a row asks for."""
    return (
        loss_of is MEMBERS[member] is MEMBERS["sigmoid focal"]
        and loss == table.LOSS
        and "label_smoothing" not in (parameters or {})
    )


def rows_of(*modules: ModuleType) -> list[Any]:
    """Every test of other modules that runs an implementation, with every value of its parameters."""
    rows = []
    for function in (value for module in modules for name, value in vars(module).items() if name.startswith("test_")):
        axes = {
            tuple(mark.args[0].replace(" ", "").split(",")): mark.args[1]
            for mark in function.pytestmark
            if mark.name == "parametrize"
        }
        if axes.pop(("implementation",), None):
            several = {
                names: values if len(names) > 1 else [(value,) for value in values] for names, values in axes.items()
            }
            names = [name for group in several for name in group]
            for values in itertools.product(*several.values()):
                arguments = dict(zip(names, itertools.chain(*values)))
                if not served(**arguments):
                    continue
                rows.append(
                    pytest.param(
                        function,
                        arguments,
                        id=f"{function.__name__.removeprefix('test_')}-{'-'.join(map(str, arguments.values()))}",
                    )
                )
    return rows


@pytest.mark.parametrize("function, arguments", rows_of(test_empty, test_extremes)[:: EVERY[0]])
def test_it_holds_on_cuda_too_that(function: Any, arguments: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Not between -87.3 and -104: there the chip's ex2 gives 0 for a result below 2^-126.
    monkeypatch.setattr(test_extremes, "LOGITS", [x for x in test_extremes.LOGITS if not 87.3 < abs(x) < 104])
    function(**arguments, implementation=PUBLIC)


# Of flat targets: many of 1, a few, and a few beside which something stops or leaves the loop.
MASKS = {
    "half are 1": lambda t: t < 0.5,
    "few are 1": lambda t: t < 0.002,
    "in pairs of bytes": lambda t: (t < 0.5).to(torch.uint8),
    "one is ignored": lambda t: (t < 0.5).to(torch.uint8).index_fill(0, torch.tensor([5000]), 255),
    "one is soft": lambda t: (t < 0.5).float().index_fill(0, torch.tensor([5000]), 0.25),
    "some are soft": lambda t: torch.where(t < 0.002, 300 * t, 0.0),
}


@pytest.mark.parametrize("extreme", (False, True), ids=("usual logits", "infinite logits"))
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("loss", ("sigmoid_focal_loss", "asymmetric_loss", "varifocal_loss"))
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("grid", table.GRIDS[:2])  # a tile of all the logits, and forty
def test_dense_targets_stream_with_ones_and_others_among_them(
    grid: int, mask: str, loss: str, dtype: torch.dtype, extreme: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, FLAVOUR, grid)
    rng = torch.Generator().manual_seed(3)
    x = (torch.randn(9003, generator=rng) * 4).to(dtype)
    targets = MASKS[mask](torch.rand(9003, generator=rng))
    if extreme:
        x[700], x[701], x[8001] = torch.inf, -torch.inf, torch.inf
    options = {"ignore_index": 255} if mask == "one is ignored" else {}
    results = []
    for module_of, logits in ((focal_ext, x), (focal_ext.reference, x.double())):
        leaf = logits.clone().requires_grad_()
        terms = getattr(module_of, loss)(leaf[None], targets[None], reduction="sum", **options)
        results.append((terms.detach().double(), *torch.autograd.grad(terms, leaf)))
    (total, gradient), (want, right) = results
    near = {torch.float32: 2e-5, torch.bfloat16: 2**-8 + 2e-5, torch.float16: 2**-11 + 3e-5}[dtype]
    assert torch.allclose(total, want, rtol=1e-4) or (extreme and total == want == torch.inf)
    # near the clip of the asymmetric loss p - clip has lost its digits, in every stream
    tiny = 1e-6 if loss == "asymmetric_loss" else float(torch.finfo(dtype).smallest_normal)
    assert torch.allclose(gradient.double(), right, rtol=2 * near, atol=tiny, equal_nan=True)

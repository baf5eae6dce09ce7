# Owns: that what bench/ measures against computes the same loss, and that nothing is left out of a table without its
# reason.
# Must not know: any time.
from __future__ import annotations

import sys

import focal_ext
import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("tqdm")
from bench import apart, baselines, drawing, family, growth, head, layouts, performance_page, readme, step
from bench.cases import ANCHORS, STRIDE_16, STRIDE_32, Case, synthetic
from bench.compare import FLOOR, error_of, rows_of, too_much
from bench.measure import Forward

INSTALLED = {name: peer for name, peer in baselines.peers(cuda=False).items() if not isinstance(peer, str)}


@pytest.mark.parametrize("name", ["eager", "masked", "selected", *INSTALLED])
def test_every_baseline_computes_the_loss(name: str) -> None:
    case = synthetic("", 300, 80)
    want = focal_ext.reference.sigmoid_focal_loss(
        case.logits.double(), case.ids, gamma=1.5, reduction="sum", normalizer="positives"
    )
    got = INSTALLED.get(name, getattr(baselines, name, None))(case.logits, case.ids, 1.5)
    assert float(got) == pytest.approx(float(want), rel=1e-5)


def test_a_library_that_cannot_be_imported_has_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("fvcore.nn", "kornia.losses"):
        monkeypatch.setitem(sys.modules, module, None)
    rows = [
        {key: str(value) for key, value in row.items()} for row in rows_of(synthetic("", 100, 80, compiled=()), 0.0)
    ]
    assert {row["implementation"]: row["ms"] for row in rows if row["why_not"]} == {"fvcore": "", "kornia": ""}
    table = readme.table(rows, rows)
    assert all(
        name in table
        for name in ("| fvcore | not measured: import of fvcore.nn", "| kornia | not measured: import of kornia.losses")
    )


def test_a_value_alone_is_compared_with_float64() -> None:
    case = synthetic("", 300, 80, forward=True)
    right = Forward(lambda x: baselines.eager(x, case.ids, case.gamma), case.logits)
    wrong = Forward(lambda x: baselines.eager(x, case.ids, case.gamma) * 1.01, case.logits)
    assert error_of(right, case) < 1e-5 and error_of(wrong, case) == pytest.approx(0.01, rel=1e-2)


def test_the_sizes_are_those_of_retinanet() -> None:
    anchors = [height * width * head.ANCHORS for height, width in head.SIZES]
    assert sum(anchors) == ANCHORS and anchors[1:3] == [STRIDE_16, STRIDE_32]


@pytest.mark.parametrize("loss", family.BASELINES)
def test_the_family_s_forms_compute_its_loss_in_bf16_and_another_loss_is_noticed(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = family.BASELINES[loss]
    eager = next(iter(forms.eager.values()))
    # torch's cross entropy in bf16 takes log(1 + e^x) of a negative for 0: all that the sum of this loss is made of
    dtype = torch.float32 if "beta 0" in loss else torch.bfloat16
    monkeypatch.setattr(family, "peak_bytes", lambda step: 0)  # a profiler a step, ten times the time of all else
    for case in (c for c in family.cases(loss, 300, sizes=True) if c.logits.dtype is dtype and not c.threads):
        monkeypatch.setitem(family.BASELINES, loss, forms._replace(compiled={}))
        rows = family.rows_of(loss, case, 0.0)
        assert {row["implementation"] for row in rows} >= {family.OURS, family.FORWARD_FLOOR if case.forward else FLOOR}
        wrong = forms._replace(eager={"": lambda x, *labels: 1.5 * eager(x, *labels)}, compiled={})
        monkeypatch.setitem(family.BASELINES, loss, wrong)
        with pytest.raises(AssertionError, match="another"):
            family.rows_of(loss, case, 0.0)


def test_eager_is_left_out_where_its_tensors_are_not_free() -> None:
    fits, does_not = (
        Case("", torch.empty(rows, 1000, device="meta"), torch.empty(rows, device="meta")) for rows in (1, 10**9)
    )
    assert not too_much(fits) and too_much(does_not).startswith("would take 68000 GB, ")


def test_growth_leaves_eager_out_where_it_would_not_fit_and_says_so() -> None:
    for elements, fits in ((10**8, True), (10**9, False)):
        case = Case("", torch.empty(elements // 80, 80, device="meta"), torch.empty(elements // 80, device="meta"))
        found = dict(growth.alternatives(case))
        assert list(found) == [growth.EAGER, growth.OURS, FLOOR]
        assert isinstance(found[growth.EAGER], str) is not fits
        assert fits or found[growth.EAGER] == "would take 52 GB, more than 10"


def test_growth_s_rows_repeat_what_was_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "DRAWN", 800)
    case = growth.case_of(growth.Point("elements", 2000, 80, "bf16"))
    assert (
        case.logits.shape == (25, 80)
        and torch.equal(case.logits[10:20], case.logits[:10])
        and torch.equal(case.ids[20:], case.ids[:5])
    )


def test_every_point_and_size_has_its_row_in_the_csv() -> None:
    rows = performance_page.read("growth")
    found = {
        (row["sweep"], int(row["elements"]), int(row["classes"]), row["dtype"], row["implementation"]) for row in rows
    }
    assert found == {(*point, name) for point in growth.points(10**9) for name in performance_page.LINES}
    assert all(bool(row["ns"]) is not bool(row["why_not"]) for row in rows)
    assert list(dict.fromkeys(row["case"] for row in performance_page.read("step"))) == list(step.SETTINGS)
    assert list(dict.fromkeys(row["layout"] for row in performance_page.read("pyramid_sizes"))) == list(head.SETTINGS)
    cases = [
        case.name.replace(", 1 x 80,", f", {ANCHORS:,} x 80,")
        for loss in family.OF_SIZES
        for case in family.cases(loss, 1, sizes=True)
    ]
    assert list(dict.fromkeys(row["case"] for row in performance_page.read("family_sizes"))) == cases
    for name in readme.FAMILY:
        assert {row["case"].split(", 201,600")[0] for row in performance_page.read(name)} == set(family.BASELINES)
    assert list(dict.fromkeys(row["case"] for row in performance_page.read("layouts"))) == list(layouts.WAYS)


@pytest.mark.parametrize("setting", [apart.ROWS, apart.BF16, apart.GENERIC])
def test_what_is_measured_apart_is_the_loss_and_its_error_is_seen(setting: str) -> None:
    chosen = apart.SETTINGS[setting](300)
    exact = {apart.ROWS: 1e-6, apart.BF16: 4.2e-3, apart.GENERIC: 1e-6}[setting]
    assert {"eager PyTorch (torchvision)", "focal_ext", "focal_ext, overwrite_inputs", FLOOR} <= set(chosen.names)
    assert chosen.error(chosen.step("eager PyTorch (torchvision)")) > 10 * exact
    assert (
        chosen.error(chosen.step("focal_ext")) < exact
        and chosen.error(chosen.step("focal_ext, overwrite_inputs")) < exact
    )
    assert chosen.error(chosen.step(FLOOR)) == ""


def test_the_error_of_levels_is_that_of_their_rows() -> None:
    assert apart.error_of_levels(head.loss_step("pyramid op", 80, head.Setting())) < 1e-6


def test_a_worker_answers_turns_and_a_report_and_one_that_ended_is_an_error() -> None:
    worker = apart.Worker(apart.GENERIC, "focal_ext", 100, 1)
    assert worker.answer()["first_call_s"] > 0 and worker.ask("turn")["seconds"] > 0
    report = worker.ask("report")
    assert report["peak_extra_logits"] == pytest.approx(1, abs=0.1) and report["worst_relative_error"] < 1e-6
    worker.process.stdin.close()
    with pytest.raises(RuntimeError, match="a worker ended"):
        worker.answer()
    assert worker.process.wait() == 0


def test_the_three_ways_of_a_training_step_are_one_loss() -> None:
    training = step.Training.of(step.Setting(2, 64, 96, {"num_classes": 3}))
    features, _ = training.model.towers(training.images)
    losses = [
        float(way(features, training.model.classify[-1], 3, training.targets, 0.25, 2.0).detach())
        for way in step.WAYS.values()
    ]
    assert losses == pytest.approx(losses[:1] * 3, rel=1e-5)


@pytest.mark.native
def test_the_drawing_has_one_operation_and_two_passes_of_ours_and_all_of_the_eager_formulas() -> None:
    found = {name: (len(drawing.large(done)), drawing.passes(done)) for name, (done, _) in drawing.counted().items()}
    assert found["focal_ext"] == (1, 2)
    operations, passes = found["eager PyTorch"]
    assert operations > 30 and passes > 2 * operations  # each reads one tensor or two and writes one

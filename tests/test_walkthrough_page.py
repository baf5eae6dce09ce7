# Owns that docs/walkthrough.md and its figures say what the code computes and the result files hold.
# Must not need a network, a display or the real photographs.

import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("faster_coco_eval")
pytest.importorskip("matplotlib")
from drawn import scene

from examples import loss_curves
from examples.retinanet import __main__ as command
from examples.retinanet import concentration, datasets, steps, study, tables, walkthrough
from examples.retinanet.matcher import BACKGROUND, IGNORED
from examples.retinanet.settings import Settings


# Concentration of the loss


def test_a_larger_gamma_puts_more_of_the_loss_into_the_hardest_negatives():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(20000, 1, generator=generator) * 1.5 - 4
    targets = torch.full((20000,), BACKGROUND)
    targets[:50], targets[50:90] = 0, IGNORED
    logits[50:90] = 9  # ignored anchors would be the hardest of all
    shares = concentration.table(logits, targets)
    p = torch.sigmoid(logits[90:, 0].double()).sort(descending=True).values
    for gamma, got in shares.items():
        by_hand = p**gamma * -torch.log1p(-p)
        expected = [float(by_hand[: round(share * len(p))].sum() / by_hand.sum()) for share in concentration.SHARES]
        assert got == pytest.approx(expected, rel=1e-9)
    assert all(
        low < high
        for smaller, larger in zip(concentration.GAMMAS, concentration.GAMMAS[1:])
        for low, high in zip(shares[smaller], shares[larger])
    )


def test_equal_losses_are_spread_evenly_and_one_large_one_takes_all():
    assert concentration.share_of_hardest(torch.ones(200), 0.05) == pytest.approx(0.05)
    assert concentration.share_of_hardest(torch.tensor([1.0, *[1e-12] * 9]), 0.01) == pytest.approx(1)  # at least one


# The figure of curves


@pytest.mark.parametrize("gamma", loss_curves.GAMMAS)
def test_the_drawn_curves_are_the_formula_and_its_derivative(gamma):
    p = torch.tensor([0.01, 0.3, 0.9, 0.99], dtype=torch.float64)
    loss, gradient = loss_curves.curve(gamma, p)
    torch.testing.assert_close(loss, -((1 - p) ** gamma) * torch.log(p), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, (1 - p) ** gamma * (gamma * p * torch.log(p) + p - 1), rtol=1e-12, atol=0)


# The page


@pytest.mark.parametrize("name", ["formula", "smoothing", *walkthrough.FROM_RESULTS])
def test_the_page_says_what_its_code_prints_and_the_results_say(name):
    assert walkthrough.current(name) == walkthrough.block(name), "make walkthrough"


@pytest.mark.parametrize("name", list(walkthrough.MEASURED))
def test_every_measured_block_of_the_page_is_filled(name):
    assert any(character.isdigit() for character in walkthrough.current(name)), "make walkthrough"


def test_every_row_of_the_results_is_one_that_the_study_trains_and_each_data_set_has_some():
    for name, rows in study.ROWS.items():
        found = [(row["table"], row["options"], int(row["seed"])) for row in tables.results(name)]
        wanted = [(*row, seed) for row in rows for seed in study.SEEDS.get((name, row[0]), (0,))]
        assert found and [row for row in wanted if row in found] == found
        assert all(0 <= float(row[column]) <= 1 for row in tables.results(name) for column in ("ap50", "ap", "recall"))


def test_every_option_that_the_page_advises_exists():
    known = {option for action in command.parser()._actions for option in action.option_strings} | {
        "--write",
        "--again",
        "--nproc-per-node",
    }
    text = walkthrough.DOCUMENT.read_text()
    advised = {
        word for word in text.replace("`", " ").replace('"', " ").split() if word.startswith("--") and word.strip("->")
    }
    assert len(advised) > 10 and advised <= known


def test_the_steps_measure_a_small_data_set(monkeypatch):
    monkeypatch.setitem(
        datasets.LOADERS, "nuclei", lambda cache: datasets.Dataset("nuclei", [scene(0), scene(1)], [scene(2)])
    )
    monkeypatch.setattr(steps, "CROPS", 4)
    monkeypatch.setitem(steps.SETTINGS, "nuclei", Settings(crop_size=64, batch_size=2, depth=1))
    tiny = datasets.load("nuclei", None)
    cells = [cell.strip(" *") for cell in list(steps.imbalance([tiny]))[-1].split("|")]
    targets, objects = steps.labels(tiny)
    assert (
        cells[3] == f"{objects / 4:.1f}"
        and cells[-2] == f"{int((targets == BACKGROUND).sum()) / int((targets >= 0).sum()):.0f}"
    )
    first = [float(number) for number in list(steps.prior([tiny]))[2].split("|")[3:-1]]
    # the prior of .01 tames loss and gradient of the first step
    assert first[0] > 3 * first[2] and first[1] > 3 * first[3]
    assert "of which not positive 0." in next(steps.boxes(tiny))
    rescued, plain = (steps.unmatched(tiny, 0.9, rescue) for rescue in (True, False))
    assert rescued < plain

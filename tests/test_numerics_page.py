# Owns: that docs/numerics.md says what its CSV says, that the CSV has every curve, and that what measures the curves
# sees an error.
# Must not know: the figures.
from __future__ import annotations

import numerics_page
import pytest
import torch
from curves import FAMILY, PEER_CURVES, Curve, errors_of, measured
from exhaustive import LAST, all_finite, float32_chunk
from rounding import ulp
from tolerances import CLAIMS, claim

CURVES = [(family, curve) for family, curves in FAMILY.items() for curve in curves]


def test_the_page_is_that_of_the_results() -> None:
    text = numerics_page.PAGE.read_text()
    assert numerics_page.page(text) == text, "python tests/numerics_page.py --write"


def test_the_results_have_every_curve_and_keep_the_claims() -> None:
    rows = {
        (
            row["implementation"],
            row["family"],
            row["loss"],
            row["target"],
            row["settings"],
            row["dtype"],
            row["what"],
        ): row
        for row in numerics_page.read()
    }
    wanted = [
        (family, curve, dtype) for family, curve in CURVES for dtype in (torch.float32, torch.bfloat16, torch.float16)
    ]
    wanted += [("peers", curve, torch.float32) for curve in PEER_CURVES]
    keys = {
        (
            curve.implementation,
            family,
            curve.loss,
            f"{curve.target:g}",
            curve.settings,
            str(dtype).removeprefix("torch."),
            what,
        ): (family, curve, dtype)
        for family, curve, dtype in wanted
        for what in ("loss", "gradient")
    }
    assert rows.keys() == keys.keys()
    ours = {key: of for key, of in keys.items() if key[0] == "focal_ext"}
    assert [
        key
        for key, of in ours.items()
        if float(rows[key]["worst_ulp"]) > claim(of[0], of[2], of[1].cancels).units or rows[key]["not_finite"] != "0"
    ] == []


@pytest.mark.native
@pytest.mark.parametrize("family, curve", CURVES, ids=lambda value: str(value) if isinstance(value, Curve) else "")
def test_a_sample_of_each_curve_keeps_its_claim(family: str, curve: Curve) -> None:
    step = LAST // 2**15 | 1
    for x in (
        float32_chunk(0, step, 1),
        float32_chunk(0, step, -1),
        all_finite(torch.bfloat16)[::7],
        all_finite(torch.float16)[::7],
    ):
        for what, errors in measured(curve, x).items():
            assert (
                errors.worst <= claim(family, x.dtype, curve.cancels).units
                and not errors.not_finite
                and errors.count == len(x)
            ), f"{what} at {errors.at!r}"


def test_an_error_is_seen_with_its_logit_its_bin_and_its_reach() -> None:
    want = torch.linspace(1, 2, 1000, dtype=torch.float64)
    logits, got = torch.arange(1000.0), want.float()
    got[500] = torch.nextafter(got[500], torch.tensor(9.0))
    got[700] += 20 * ulp(want, torch.float32)[700].item()
    got[900] = torch.inf
    found = errors_of(got, want, want, logits)
    assert (
        found.worst == pytest.approx(20, abs=0.5)
        and found.at == 700
        and found.not_finite == 1
        and found.good_below == 700
    )
    assert sum(found.bins) == found.count == 1000 and found.bins[-1] == 1 and sum(found.bins[1:3]) == 1
    assert errors_of(got[:600], want[:600], 4 * want[:600], logits[:600]).worst == pytest.approx(0.25, abs=0.13)
    both = errors_of(got[:600], want[:600], want[:600], logits[:600]) + errors_of(
        got[600:], want[600:], want[600:], logits[600:]
    )
    assert both._replace(total=0) == found._replace(total=0) and both.total == pytest.approx(found.total)


def test_every_claim_about_curves_is_one_of_the_table() -> None:
    assert {
        claim(family, dtype, curve.cancels) for family, curve in CURVES for dtype in (torch.float32, torch.float16)
    } == {CLAIMS["native", name] for name in ("hard", "score", "terms", "stored half")}

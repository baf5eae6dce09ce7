# Owns: the suite of the CUDA kernels under sanitizers, and that each of their planted defects is noticed.
# Must not know: kernels. The runs are rows of evidence.py.
from __future__ import annotations

import re
from pathlib import Path

import pytest
from cuda_host import build
from evidence import DEFECTS, ROOT, SANITIZERS, Defect, Sanitizer, proofs, run, run_sound

pytestmark = pytest.mark.skipif(
    build.why_impossible() is not None, reason=f"the kernels cannot be compiled here: {build.why_impossible()}"
)
MEASURED, CHECKED_IN = ROOT / "build/proofs.md", Path(__file__).with_name("proofs.md")


@pytest.mark.parametrize("sanitizer", SANITIZERS, ids=lambda s: f"{s.name}, {s.numbers} per instruction, {s.rows}")
def test_the_suite_passes_under(sanitizer: Sanitizer) -> None:
    done = run(sanitizer.flavour, sanitizer.tests, sanitizer.largest, chosen=sanitizer.chosen)
    assert not re.search(sanitizer.finding, done.output), done.output[-4000:]
    assert done.status == 0 and done.passed > sanitizer.least, done.output[-4000:]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda d: f"{d.name} by {d.caught_by}")
def test_a_planted_defect_is_caught(defect: Defect) -> None:
    sound, defective = run_sound(defect.flavour), run(defect.flavour, defect.check, defect=defect.name)
    assert sound.status == 0 and sound.passed >= len(defect.check), sound.output[-4000:]
    assert defective.status != 0 and re.search(defect.says, defective.output), defective.output[-4000:]


COUNT = re.compile(r"(\d+) \|$", re.MULTILINE)  # of the tests that passed under a sanitizer


def test_the_checked_in_proofs_claim_no_more_than_was_just_measured() -> None:
    MEASURED.parent.mkdir(exist_ok=True)
    MEASURED.write_text(proofs())
    measured, claimed = MEASURED.read_text(), CHECKED_IN.read_text()
    hint = f"cp {MEASURED.relative_to(ROOT)} {CHECKED_IN.relative_to(ROOT)}, then make readme"
    assert COUNT.sub("", claimed) == COUNT.sub("", measured), hint
    assert all(int(few) <= int(many) for few, many in zip(COUNT.findall(claimed), COUNT.findall(measured))), hint

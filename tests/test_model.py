# Owns: that the model of the CUDA kernels' times follows the machine code, and keeps what bench/results/model.csv says
# is within its limit.
# Must not know: how long anything takes on a GPU: no figure here is a measurement.
from __future__ import annotations

import csv
import shutil
from copy import copy
from dataclasses import replace

import pytest

from bench import model, predict
from bench.chips import CHIPS
from bench.sass import Instruction, tool
from bench.schedule import cycles, stage
from bench.simulate import Step, microseconds
from bench.workloads import CASES, NONE, Case

CHIP = {chip.name: chip for chip in CHIPS}
H200 = CHIP["H200"]


def instruction(opcode: str, stall: int = 1, result: int = 7, waits: int = 0) -> Instruction:
    made = Instruction(opcode)
    made.control = stall | result << 5 | 7 << 8 | waits << 11
    return made


LOAD = [instruction("LDG.E.128", result=0), instruction("FADD", waits=1)]


@pytest.mark.parametrize(
    "trace, trips",
    [([instruction("FFMA")] * 50, 0), (LOAD, 1), (LOAD * 3, 3), ([LOAD[0]] * 4 + [LOAD[1]], 1)],
    ids=["none", "one", "one after the other", "four in flight"],
)
def test_waits_for_memory_are_counted_by_the_code_s_barriers(trace: list[Instruction], trips: int) -> None:
    assert stage(trace, H200).trips == trips


def test_stalls_cost_one_warp_and_pipes_cost_many() -> None:
    fast, stalling = [instruction("FFMA")] * 100, [instruction("FFMA", stall=4)] * 100
    assert cycles(stalling, H200, 0) > 3 * cycles(fast, H200, 0)
    assert stage(stalling, H200).issue < 1.2 * stage(fast, H200).issue  # other warps fill the gaps
    assert stage([instruction("MUFU.EX2")] * 100, H200).issue >= 8 * 100  # 16 lanes a multiprocessor


def test_a_tile_that_takes_long_outlasts_the_others_and_loads_are_bound_by_bandwidth() -> None:
    quick, slow = [Step(4096, 500, 300, 4096)], [Step(4096, 500, 300, 4096)] * 400
    even = microseconds(H200, 4, [quick] * 4096, 512)
    assert microseconds(H200, 4, [quick] * 4095 + [slow], 512) > 5 * even
    bound = 4096 * 8192 / (0.9 * 4.8e12) * 1e6
    assert bound < even < bound + 5


@pytest.mark.skipif(not shutil.which("nvcc"), reason="the control is compiled: nvcc is not on the PATH")
@pytest.mark.cuda_code
def test_a_plain_copy_takes_the_time_of_its_bytes(disassembler: None) -> None:
    assert 1 <= predict.control(H200) < 1.1
    assert 1 <= predict.control(H200, megabytes=32) < 1.1


def written() -> dict[tuple[str, str, str], dict[str, str]]:
    with model.RESULTS.open() as file:
        return {(line["chip"], line["logits"], line["case"]): line for line in csv.DictReader(file)}


def test_every_cell_is_in_the_table_with_what_is_not_within_its_limit() -> None:
    lines = written()
    assert set(lines) == {(chip.name, dtype, case.name) for chip in CHIPS for dtype in predict.TYPES for case in CASES}
    for (chip, dtype, name), line in lines.items():
        case = next(case for case in CASES if case.name == name)
        assert bool(line["within"]) >= bool(case.limits.get((chip, dtype)) or case.limit_us)
        if line["within"] in ("yes", "no"):
            assert (float(line["ratio, model"]) <= float(line["limit"]) + 0.005) == (line["within"] == "yes")
    assert model.PAGE.read_text().endswith(f"{model.MARK}\n{model.tabulate(list(lines.values()))}\n")


@pytest.fixture(scope="module")
def disassembler() -> None:
    for name in ("cuobjdump", "nvdisasm"):
        try:
            tool(name)
        except FileNotFoundError as missing:
            pytest.skip(str(missing))


@pytest.fixture(scope="module")
def code(disassembler: None) -> predict.Code:
    return predict.Code(model.LIBRARY, "sm_90", kinds=["focal"], dtypes=["bf16"])


ONE_IMAGE = [case for case in CASES if case.rows == 201_600 and not case.pyramid_images]


def beyond(code: predict.Code, case: Case) -> list[str]:
    """Cells of one case that the table has within their limits, and the kernels have not."""
    kept = [
        chip for chip in CHIPS if (line := written()[chip.name, "bf16", case.name])["within"] == "yes" and line["limit"]
    ]
    ratios = {
        chip.name: predict.main_kernel(code, chip, "bf16", case) / predict.bytes_us(chip, case.bytes("bf16"))
        for chip in kept
        if chip.arch == "sm_90"
    }
    return [
        f"{case.name}, {chip}: model {ratio:.2f}" for chip, ratio in ratios.items() if ratio > case.limits[chip, "bf16"]
    ]


@pytest.mark.cuda_code
@pytest.mark.parametrize("case", ONE_IMAGE, ids=lambda case: case.name)
def test_the_kernels_keep_the_limits_that_the_table_says_they_keep(code: predict.Code, case: Case) -> None:
    assert beyond(code, case) == []


@pytest.mark.cuda_code
def test_both_readings_of_softmax_over_planes_have_eight_loads_in_flight_in_fp32(disassembler: None) -> None:
    """In bf16 the model sees the first reading wait three times."""
    code = predict.Code(model.LIBRARY, "sm_90", kinds=["softmax planes"], dtypes=["fp32"])
    before, first, between, second, _ = code.bodies["softmax planes", "fp32"].softmax_readings("fp32")
    for trace, stores in ((first, 0), (second, 8)):
        assert trace.count("LDG.E") >= 8 and trace.count("STG.E") >= stores and stage(trace, H200).trips == 1
        assert sum(op == "MUFU.EX2" for op in trace) >= 8
    assert stage(before, H200).trips >= 1 and any(op.startswith("MUFU") for op in between)


@pytest.mark.cuda_code
def test_a_slower_schedule_would_be_found(code: predict.Code) -> None:
    body = code.bodies["focal", "bf16"]
    header, _, trace = body.stream
    longer = [
        block + [instruction("FFMA")] * len(trace) if i == header else block for i, block in enumerate(body.opcodes)
    ]
    planted = copy(code)
    planted.bodies, planted.costs = {("focal", "bf16"): replace(body, opcodes=longer)}, {}
    background = next(case for case in ONE_IMAGE if case.special is NONE)
    assert [sentence.split(":")[0] for sentence in beyond(planted, background)] == [
        f"{background.name}, {chip}" for chip in ("H100 SXM", "H200")
    ]

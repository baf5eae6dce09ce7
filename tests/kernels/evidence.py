# Owns: the runs that prove something about the suite of the CUDA kernels: under sanitizers, and with a mistake planted
# in a kernel.
# Must not know: what the kernels compute.
from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

from cuda_host import build
from filelock import FileLock

ROOT = Path(__file__).resolve().parents[2]
TABLE, SOFTMAX = ("tests/test_cuda_host.py", "tests/test_pyramid_cuda_host.py"), ("tests/test_softmax_cuda_host.py",)
FAR = ("tests/kernels/test_far_offsets.py",)


class Sanitizer(NamedTuple):
    name: str
    finding: str  # what its report begins with
    flavour: str
    numbers: str  # per instruction
    largest: int  # logits of a row
    chosen: str  # tests, for pytest's -k
    rows: str
    least: int  # tests that must have passed
    tests: tuple[str, ...] = TABLE


class Defect(NamedTuple):
    """A mistake of cuda_host/defects.py, the check that must fail, and what that failure must say."""

    name: str
    mistake: str
    caught_by: str
    flavour: str
    check: tuple[str, ...]
    says: str


STREAMS = "two_numbers_per_instruction"  # the test of the rows for which packed arithmetic is another path
ALL, SMALL = (
    (2**31, f"not {STREAMS}", "a third of the focal loss's with one of each kernel, a quarter of the others'", 700),
    (
        4096,
        f"not {STREAMS}",
        "of those of at most 4096 logits, a third of the focal loss's with one of each kernel, a twelfth of the "
        "others'",
        450,
    ),
)
ALL_STREAMS = 2**31, STREAMS, "of them, those that stream", 150  # the careful path is the same code
SMALL_STREAMS = 4096, STREAMS, "of them, those that stream", 80
IN_PLACE = "replace_the_logits or shares_a_long or bad_ids"
ADDRESS = "AddressSanitizer and UndefinedBehaviorSanitizer", r"ERROR: AddressSanitizer|runtime error:"
THREAD = "ThreadSanitizer, every CUDA thread a thread", r"WARNING: ThreadSanitizer"
SANITIZERS = (
    Sanitizer(*ADDRESS, "address", "one", *ALL),
    Sanitizer(*ADDRESS, "packed_address", "two", *ALL_STREAMS),
    Sanitizer(*THREAD, "thread", "one", *SMALL),
    Sanitizer(*THREAD, "packed_thread", "two", *SMALL_STREAMS),
    Sanitizer(*ADDRESS, "address", "one", 4096, "test", "softmax, those of at most 4096 logits", 300, SOFTMAX),
    Sanitizer(*THREAD, "thread", "one", 4096, IN_PLACE, "softmax over the logits, in rows of all lengths", 50, SOFTMAX),
)


CHECKED: set[tuple[str, int]] = set()  # rows of the table, with the grid, that defects are planted for


def row(case: str, grid: int) -> tuple[str, ...]:
    CHECKED.add((case, grid))
    return (
        "tests/kernels/test_whole_table.py::test_loss_and_gradient_are_those_of_the_float64_reference"
        f"[{case}-FLAVOUR-{grid}]",
    )


# many tiles a warp; the last has 3 logits of 8
SPECIAL, PARTIAL = (
    row("sigmoid_focal, shape (600, 80), reduction sum", 1),
    row("sigmoid_focal, shape (137, 91), reduction sum", 1),
)
# in a stream the weights' barrier orders the labels too
CAREFUL = row("sigmoid_focal, dtype float64, reduction sum", 1)
NEGATIVE = row("sigmoid_focal, shape (64, 80), reduction sum, targets ids rare", 3)
ROW = (f"{SOFTMAX[0]}::test_the_gradient_may_replace_the_logits[factor-ids-80-torch.float32]",)
BARRIER = "no __syncthreads before the first warp adds what all warps wrote"
ORDER = (
    "no __syncwarp between writing labels and reading those of other lanes: the ballot between them orders no memory"
)
OVERWRITE = "no __syncwarp before the next tile's labels overwrite this one's"
DEFECTS = (
    Defect("missing_barrier", BARRIER, "value", "plain", SPECIAL, "are off"),
    Defect("missing_barrier", BARRIER, "ThreadSanitizer", "thread", SPECIAL, r"data race .*reduce\.cuh"),
    Defect("unordered_labels", ORDER, "ThreadSanitizer", "thread", CAREFUL, r"data race .*(targets|marks|focal)\.cuh"),
    Defect("overwritten_labels", OVERWRITE, "value", "plain", SPECIAL, "are off"),
    Defect(
        "overwritten_labels", OVERWRITE, "ThreadSanitizer", "thread", SPECIAL, r"data race .*(targets|marks|focal)\.cuh"
    ),
    Defect(
        "early_gradient",
        "no __syncwarp before a row's gradient replaces the logit that all its lanes read",
        "ThreadSanitizer",
        "thread",
        ROW,
        r"data race .*(softmax\.cuh|::id_row)",
    ),
    Defect(
        "tail_read",
        "the careful path reads logits past the end of a partial tile",
        "AddressSanitizer",
        "address",
        PARTIAL,
        r"heap-buffer-overflow .*(focal\.cuh|focal_ext::cuda)",
    ),
    Defect(
        "stream_tail",
        "the hot loop takes a vector past the end of its tile",
        "AddressSanitizer",
        "address",
        NEGATIVE,
        r"heap-buffer-overflow .*(stream\.cuh|NegativeStream|stream_tile|run_stream)",
    ),
    Defect(
        "stream_tail",
        "the same, two numbers per instruction",
        "AddressSanitizer",
        "packed_address",
        NEGATIVE,
        r"heap-buffer-overflow .*(stream\.cuh|NegativeStream|stream_tile|run_stream)",
    ),
    Defect(
        "shuffle_distance",
        "every step of a warp's sum exchanges with the neighbour",
        "value",
        "plain",
        SPECIAL,
        "are off",
    ),
    Defect(
        "index_32", "a tile's first element in 32 bits", "reserved address space", "plain", FAR, "Segmentation fault"
    ),
    Defect(
        "unwritten_slot",
        "one warp does not write its sum for the others",
        "value, by poison",
        "plain",
        SPECIAL,
        "are off",
    ),
)


class Run(NamedTuple):
    status: int
    passed: int
    output: str


def fixed_addresses() -> list[str]:
    """ThreadSanitizer of g++ 12 finds no place for its memory where addresses have more than 28 random bits."""
    bits = Path("/proc/sys/vm/mmap_rnd_bits")
    return ["setarch", "-R"] if bits.exists() and int(bits.read_text()) > 28 else []


@cache
def run(flavour: str, tests: tuple[str, ...], largest: int = 2**31, defect: str = "none", chosen: str = "") -> Run:
    """The tests in a process of their own, whose kernels are of this flavour and have this defect.

    The workers of one pytest-xdist session share a run: the first executes it, who wants it meanwhile waits.
    """
    what = repr((flavour, tests, largest, defect, chosen))
    session = ROOT / "build/evidence" / os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    session.mkdir(parents=True, exist_ok=True)
    kept = session / f"{hashlib.sha256(what.encode()).hexdigest()[:16]}.json"
    with FileLock(kept.with_suffix(".lock")):
        if not kept.exists():
            kept.write_text(json.dumps(executed(flavour, tests, largest, defect, chosen)))
        return Run(*json.loads(kept.read_text()))


def executed(flavour: str, tests: tuple[str, ...], largest: int, defect: str, chosen: str) -> Run:
    build.build(flavour)
    environment = {**build.environment(flavour), "CUDA_HOST_LARGEST": str(largest), "CUDA_HOST_DEFECT": defect}
    # wrong values need an unlucky order, and a barrier is missed in most but not in all: one that is
    if defect != "none":
        environment["CUDA_HOST_SEED"] = "0"
    command = [
        *fixed_addresses(),
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-s",
        "-p",
        "no:cacheprovider",
        *(test.replace("FLAVOUR", flavour) for test in tests),
        "-k",
        chosen,
    ]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    output = done.stdout + done.stderr
    passed = re.search(r"(\d+) passed", output)
    return Run(done.returncode, int(passed[1]) if passed else 0, output)


def run_sound(flavour: str) -> Run:
    """Every check that a mistake is planted for in this flavour, without one."""
    checks = dict.fromkeys(test for defect in DEFECTS if defect.flavour == flavour for test in defect.check)
    return run(flavour, tuple(checks))


def proofs() -> str:
    """What was proved, without times: the same wherever it runs."""
    sanitizers = [
        f"| {s.name} | {s.numbers} | {s.rows} | {run(s.flavour, s.tests, s.largest, chosen=s.chosen).passed} |"
        for s in SANITIZERS
    ]
    caught = [
        f"| {d.name} | {d.mistake} | {d.caught_by} |"
        for d in DEFECTS
        if re.search(d.says, run(d.flavour, d.check, defect=d.name).output)
    ]
    return "\n".join(
        [
            "## Executed on the CPU",
            "",
            "The kernels' own source runs on a device made of a CPU (`tests/cuda_host`), blocks and threads in random "
            "order. `make test-kernels` wrote this.",
            "",
            "| sanitizer | numbers per instruction | rows of the table | tests passed |",
            "|---|---|---|---|",
            *sanitizers,
            "",
            "| planted defect | mistake | caught by |",
            "|---|---|---|",
            *caught,
            "",
        ]
    )

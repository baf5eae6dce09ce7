# Owns: the CPU library under sanitizers: the whole table at every instruction set, and many threads at once; and that
# they look.
# Must not know: losses.
from __future__ import annotations

import re

import cpu_library
import pytest
from test_determinism import levels_of_this_machine

# Run from tests/ over the library's own copy of the package; pytest.ini would put the repository's first.
PYTEST = ("-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", "-o", "pythonpath=")
TABLE = (
    "test_values.py",
    "test_empty.py",
    "test_extremes.py",
    "test_overwrite.py",
    "test_errors.py",
    "test_threads.py",
    "test_table.py",
)
FINDING = r"ERROR: AddressSanitizer|runtime error:|WARNING: ThreadSanitizer"
FREED = """
import ctypes, torch, focal_ext
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
memory = libc.malloc(4 * 80)
inputs = torch.frombuffer((ctypes.c_float * 80).from_address(memory), dtype=torch.float32).view(1, 80)
libc.free(memory)
focal_ext.sigmoid_focal_loss(inputs, torch.zeros(1, dtype=torch.int64), reduction="sum")
"""


def passes(flavour: str, *tests: str, least: int, **changes: str) -> None:
    status, output = cpu_library.python(flavour, *PYTEST, *tests, **changes)
    passed = re.search(r"(\d+) passed", output)
    assert not re.search(FINDING, output), output[-4000:]
    assert status == 0 and passed and int(passed[1]) >= least, output[-4000:]


@pytest.mark.parametrize("level", levels_of_this_machine())
def test_the_whole_table_reads_and_writes_only_what_is_its_own(level: str) -> None:
    passes("address", *TABLE, "-k", "not avx2 and not focal_ext.reference", least=1000, FOCAL_EXT_CPU_LEVEL=level)


def test_threads_of_the_user_and_of_torch_do_not_race() -> None:
    """Without forked workers: ThreadSanitizer cannot follow threads of a process forked from one with threads;
    AddressSanitizer does, above."""
    passes(
        "thread",
        "test_threads.py",
        "test_determinism.py",
        "test_table.py",
        "-k",
        "threads and not worker or differentiated or spawn",
        least=20,
        OMP_NUM_THREADS="3",
    )


def test_the_sanitizers_look() -> None:
    """A read of freed memory, and threads whose start and end the sanitizer is not told of, must be findings."""
    status, output = cpu_library.python("address", "-c", FREED)
    assert status != 0 and "heap-use-after-free" in output and "csrc/" in output, output[-4000:]
    status, output = cpu_library.python("thread", *PYTEST, "test_threads.py", FORK_JOIN_UNSEEN="1")
    assert status != 0 and "WARNING: ThreadSanitizer: data race" in output and "csrc/" in output, output[-4000:]

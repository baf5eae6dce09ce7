# Owns: rules about the source that a search can check: who may include, launch, call and switch what.
# Must not know: what the code computes.
from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from focal_ext import __version__

ROOT = Path(__file__).resolve().parents[1]
C_PLUS_PLUS = ("*.h", "*.cuh", "*.cu", "*.cpp")


class Rule(NamedTuple):
    """A pattern that may occur only in the allowed files, of those under `folders` that match `names`."""

    why: str
    pattern: str
    folders: tuple[str, ...]
    names: tuple[str, ...]
    allowed: tuple[str, ...] = ()


RULES = {
    "formulas see no torch": Rule(
        "a loss header compiles for any device, with any compiler",
        r'#include\s*[<"](torch|ATen|c10)/',
        ("csrc/losses",),
        C_PLUS_PLUS,
    ),
    "kernels see no torch": Rule(
        "the same text runs on the host in the tests",
        r'#include\s*[<"](torch|ATen|c10)/',
        ("csrc/cuda", "csrc/cpu"),
        C_PLUS_PLUS,
    ),
    "only the binding sees torch": Rule(
        "tensors exist only at the binding",
        r'#include\s*[<"](torch|ATen|c10)/',
        ("csrc",),
        C_PLUS_PLUS,
        ("csrc/ops.cpp", "csrc/arguments.h", "csrc/tensors.h"),
    ),
    "stable ABI only": Rule(
        "one library serves every later torch",
        r'#include\s*[<"](ATen/|c10/|torch/(extension|library|types)\.h|torch/torch\.h)',
        ("csrc",),
        C_PLUS_PLUS,
    ),
    "one launch helper": Rule(
        "stream, error check and grid are in one place", r"<<<", ("csrc",), C_PLUS_PLUS, ("csrc/cuda/launch.cuh",)
    ),
    "one door to the ops": Rule(
        "the rest of the package works without the library",
        r"torch\.ops\b",
        ("focal_ext",),
        ("*.py",),
        ("focal_ext/_native.py",),
    ),
    "private names of torch": Rule(
        "each with what is done when it is gone",
        r"torch\._[a-zA-Z]|_functorch|forward_ad\._|\._is_view|\._base\b",
        ("focal_ext",),
        ("*.py",),
        ("focal_ext/_torch_private.py",),
    ),
    "no fast math": Rule(
        "-ffast-math sets flush-to-zero for the whole process and drops NaN; --use_fast_math drops subnormals",
        r"(?<!No )(?<!no )-ffast-math|-Ofast|-funsafe-math|-ffinite-math-only|--?use_fast_math|-ftz=true",
        ("CMakeLists.txt", "setup.py", "csrc"),
        (*C_PLUS_PLUS, "*.py", "*.cmake", "CMakeLists.txt"),
    ),
    "no build paths in binaries": Rule(
        "-lineinfo writes the builder's folders into the wheel",
        r"-lineinfo",
        ("CMakeLists.txt", "csrc/configure", "setup.py"),
        ("*",),
    ),
    "no standard library in kernels per instruction set": Rule(
        "an inline function compiled for AVX-512 must not be the one the linker keeps for every machine",
        r"#include\s*<(?!stdint\.h|math\.h|string\.h|immintrin\.h)",
        (
            *(str(p.relative_to(ROOT)) for p in (ROOT / "csrc/losses").glob("*.h") if p.name != "device_primitives.h"),
            *(
                str(p.relative_to(ROOT))
                for p in (ROOT / "csrc/cpu").iterdir()
                if p.name not in ("run.cpp", "run.h", "level.h")
            ),
            "csrc/problem.h",
        ),
        C_PLUS_PLUS,
    ),
    "the reference does not know the library": Rule(
        "it is the oracle", r"_native|torch\.ops|_autograd", ("focal_ext/_reference.py",), ("*.py",)
    ),
    "no threshold of softplus": Rule(
        "F.softplus is linear above 20, wrong by 9e-11 in float64",
        r"(?<!, never )(?<!no ``)F\.softplus\(",
        ("focal_ext",),
        ("*.py",),
    ),
    "actions are pinned to commits": Rule(
        "a tag can be moved", r"uses: (?!\S+@[0-9a-f]{40} # v\d)", (".github/workflows",), ("*.yml",)
    ),
    "one version": Rule(
        "setup.py and CMake read it",
        rf"\b{re.escape(__version__)}\b",
        ("pyproject.toml", "setup.py", "CMakeLists.txt", "csrc", "include", "focal_ext"),
        ("*.py", *C_PLUS_PLUS),
        ("focal_ext/_version.py",),
    ),
    "no junk drawers": Rule(
        "a file's name says what it owns",
        r"^",
        ("csrc", "focal_ext", "tests"),
        ("*utils*", "*common*", "*helpers*", "*_v2*", "*_fast*"),
    ),
    "no synchronisation": Rule(
        "reading a device value in a step stalls it; on the CPU it costs nothing",
        r"^(?!.*# on the CPU).*\.item\(\)",
        ("focal_ext",),
        ("*.py",),
    ),
}


def files(rule: Rule) -> list[Path]:
    places = [ROOT / folder for folder in rule.folders if (ROOT / folder).exists()]
    found = [place for place in places if place.is_file()]
    return sorted(
        {*found, *(path for place in places if place.is_dir() for name in rule.names for path in place.rglob(name))}
    )


@pytest.mark.parametrize("name", RULES)
def test_a_rule_of_the_source_holds(name: str) -> None:
    rule = RULES[name]
    searched = files(rule)
    broken = []
    for path in searched:
        place = path.relative_to(ROOT).as_posix()
        lines = (
            enumerate(path.read_text(errors="ignore").splitlines() or [""], 1)
            if path.is_file() and "__pycache__" not in path.parts
            else ()
        )
        broken += [
            f"{place}:{number}: {line.strip()}"
            for number, line in lines
            if place not in rule.allowed and re.search(rule.pattern, line)
        ]
    assert not broken, f"{rule.why}: {broken}"
    assert searched or name == "no junk drawers", f"{name}: nothing to search, the rule is out of date"


def test_source_files_open_with_what_they_own() -> None:
    sources = [
        path
        for folder, names in (
            ("csrc", (*C_PLUS_PLUS, "*.cmake")),
            *((folder, ("*.py",)) for folder in ("bench", "examples", "focal_ext", "tests")),
        )
        for name in names
        for path in (ROOT / folder).rglob(name)
    ]
    silent = [
        path.relative_to(ROOT).as_posix()
        for path in sources
        if path.read_text().strip() and not re.search(r"^(//|#) Owns", path.read_text(), re.MULTILINE)
    ]
    assert sources and not [place for place in silent if not place.endswith("__init__.py")]


LONG_LINES = ("*.md", "*.csv", "*.png", "LICENSE", "py.typed")  # paragraphs, tables, texts of others


def test_no_line_is_longer_than_120_columns() -> None:
    """Of what ruff and clang-format do not lay out, and of what they leave: strings and comments."""
    known = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if known.returncode:
        pytest.skip("no git here, which tells the sources from what was built")
    paths = [path for path in map(ROOT.joinpath, known.stdout.split()) if path.is_file()]
    long = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in paths
        if not any(path.match(pattern) for pattern in LONG_LINES)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > 120 and not line.startswith("| ") and "https://" not in line
    ]
    assert len(paths) > 100 and long == []


def test_kernels_are_compiled_without_implicit_contraction_for_three_instruction_sets() -> None:
    text = (ROOT / "CMakeLists.txt").read_text()
    assert "-ffp-contract=off" in text and "-fopenmp-simd" in text
    assert all(f"add_cpu_level({level}" in text for level in ("baseline", "x86_64_v3", "x86_64_v4"))
    assert re.search(r"TORCH_TARGET_VERSION=0x020a0*\b", text)

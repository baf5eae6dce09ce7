# Owns: whether a build has CUDA kernels, for which architectures, and why not: by stand-ins for nvcc that say their
# version and refuse what that version refuses. Real compilers appear in the last tests only.
# Must not know: kernels, losses.
from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
CMAKE = shutil.which("cmake") or "cmake"
NINJA = shutil.which("ninja") or "ninja"

# What `nvcc --list-gpu-arch` answers.
KNOWN = {
    "12.2": "50 52 53 60 61 62 70 72 75 80 86 87 89 90",
    "12.4": "50 52 53 60 61 62 70 72 75 80 86 87 89 90",
    "12.8": "50 52 53 60 61 62 70 72 75 80 86 87 89 90 100 101 120",
    "13.0": "75 80 86 87 88 89 90 100 110 103 120 121",
}
REFUSAL = (
    "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later than 13 are not "
    "supported! The nvcc flag '-allow-unsupported-compiler' can"
)
NVCC = """#!/bin/sh
case "$*" in
  *--version*) echo "Cuda compilation tools, release {version}, V{version}.1"; exit ;;
  *--list-gpu-arch*) printf 'compute_%s\\n' {known}; exit ;;
  *--dryrun*compute_80a*) echo "nvcc fatal   : Unsupported gpu architecture 'compute_80a'" >&2; exit 1 ;;
  *--dryrun*) exit ;;
  {refused}) echo "{refusal}" >&2; exit 1 ;;
esac
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\nprintf "{devices}"\\n' > "$2"
chmod +x "$2"
"""
X86, ARM = "75 80 90 100+PTX 120", "75 80 87 90 100+PTX 120"


class Machine(NamedTuple):
    """What is installed, what is asked for, and the architectures that are built, or the words of the reason or of the
    error."""

    nvcc: str | None
    listed: str
    built: str = ""
    reason: str = ""
    error: str = ""
    wanted: str = "AUTO"
    # the arguments that nvcc fails with, by the shell's patterns; those without -ccbin begin with -std
    refused: str = "none"
    host: str | None = None
    cxx: str = "g++"
    processor: str = "x86_64"
    devices: str = ""


LISTED_100 = "CUDA architecture 100: nvcc 12.4 knows only 50 52 53 60 61 62 70 72 75 80 86 87 89 90; leave it out"
MACHINES = {
    # versions and the default list
    "the default": Machine("13.0", "", X86),
    "the default by the oldest nvcc that knows all": Machine("12.8", "", X86),
    "the default by an nvcc that does not know Blackwell": Machine("12.4", "", "75 80 90+PTX"),
    "the default on aarch64": Machine("13.0", "", ARM, processor="aarch64"),
    "the default on aarch64 by nvcc 12.4": Machine("12.4", "", "75 80 87 90+PTX", processor="aarch64"),
    "nvcc too old": Machine("12.2", "", reason="nvcc 12.2 is too old for the CUDA kernels, which need 12.4"),
    "nvcc too old, ON": Machine("12.2", "", error="FOCAL_EXT_CUDA=ON, but nvcc 12.2 is too old", wanted="ON"),
    "no nvcc": Machine(None, "9.0", reason="no nvcc was found by CUDACXX and CUDA_HOME, on the PATH and in /no/cuda"),
    "no nvcc, ON": Machine(None, "", error="FOCAL_EXT_CUDA=ON, but no nvcc was found", wanted="ON"),
    "not nvcc": Machine("a clang", "", reason="nvcc --version does not answer as nvcc does: Cuda compilation tools"),
    "switched off": Machine("13.0", "9.0", reason="FOCAL_EXT_CUDA=OFF", wanted="OFF"),
    "switched on": Machine("13.0", "9.0", "90", wanted="ON"),
    "a misspelt switch": Machine("13.0", "", error="FOCAL_EXT_CUDA must be AUTO, ON or OFF, got 'on'", wanted="on"),
    # lists
    "numbers as torch writes them": Machine("13.0", "8.0;9.0+PTX", "80 90+PTX"),
    "numbers by blanks and commas": Machine("13.0", " 8.0, 8.6  12.0+PTX ", "80 86 120+PTX"),
    "numbers without a point": Machine("13.0", "80;90+PTX", "80 90+PTX"),
    "a blank list": Machine("13.0", " ", X86),
    "suffixes": Machine("13.0", "9.0a 10.0f+PTX", "90a 100f+PTX"),
    "twice the same": Machine("13.0", "8.0 80", "80"),
    "names": Machine("13.0", "Turing;Hopper Ada", "75+PTX 90+PTX 89+PTX"),
    "names of several": Machine("13.0", "Ampere Blackwell", "80 86+PTX 100 103 120 121+PTX"),
    "a name of a Tegra chip": Machine("12.4", "Ampere+Tegra", "87"),
    "an old name, which an old nvcc knows": Machine("12.4", "Volta", "70+PTX"),
    "an old name, which a new nvcc lacks": Machine(
        "13.0", "Volta", error="CUDA architecture 70+PTX: nvcc 13.0 knows only 75 80"
    ),
    "a listed one that nvcc lacks": Machine("12.4", "9.0 10.0", error=LISTED_100),
    "a listed one that nvcc lacks, ON": Machine("12.4", "9.0 10.0", error=LISTED_100, wanted="ON"),
    "a suffix that nvcc lacks": Machine(
        "13.0", "8.0a", error="80a: nvcc 13.0 refuses them: Unsupported gpu architecture 'compute_80a'"
    ),
    "an unknown name": Machine("13.0", "hopper", error="CUDA architecture 'hopper': must be a number such as 9.0"),
    "no architecture": Machine("13.0", "9", error="CUDA architecture '9': must be a number such as 9.0"),
    # the devices of this machine
    "native": Machine("13.0", "native", "89 90+PTX", devices=r"9.0\\n8.9\\n9.0\\n"),
    "native, newer than nvcc": Machine("12.4", "native", "86 90+PTX", devices=r"12.0\\n8.6\\n"),
    "native without a device": Machine(
        "13.0", "native", error="CUDA architecture native: no CUDA device was found here"
    ),
    # host compilers
    "a host compiler that is too new": Machine(
        "12.4",
        "",
        reason=(
            "nvcc 12.4 failed with the default host compiler: unsupported GNU version! gcc versions later than "
            "13 are not supported!"
        ),
        refused="*-std*",
    ),
    "the same, ON": Machine(
        "12.4",
        "",
        error="FOCAL_EXT_CUDA=ON, but nvcc 12.4 failed with the default host compiler: unsupported GNU version!",
        refused="*-std*",
        wanted="ON",
    ),
    "a named one that is too new": Machine(
        "12.4",
        "",
        reason="nvcc 12.4 failed with the g++-16 host compiler: unsupported GNU version!",
        refused="*g++-16*",
        host="g++-16",
    ),
    "a named one": Machine("12.4", "", "75 80 90+PTX", refused="-std*", host="g++-13"),
    "the default too new, that of C++ not": Machine("13.0", "", X86, refused="-std*", cxx="g++-13"),
}


def decide(machine: Machine, folder: Path) -> str:
    """What csrc/configure/cuda.cmake prints: "built ...", a warning with the reason and "none ...", or an error."""
    tools = folder / "tools"
    tools.mkdir()
    if machine.nvcc:
        write_nvcc(tools / "nvcc", machine)
    script = folder / "decide.cmake"
    script.write_text(f"""cmake_minimum_required(VERSION 3.25)
set(CMAKE_SYSTEM_PROCESSOR {machine.processor})
set(CMAKE_CXX_COMPILER {machine.cxx})
include({ROOT}/csrc/configure/cuda.cmake)
set(usual_toolkit /no/cuda)
choose_cuda("${{wanted}}" "${{listed}}")
if(with_cuda)
  string(JOIN " " cuda_architectures ${{cuda_architectures}})
  message("built ${{cuda_architectures}} with ${{cuda_flags}}")
else()
  message("none: ${{reason_no_cuda}}")
endif()
""")
    environment = {"PATH": f"{tools}:/usr/bin:/bin", **({"CUDAHOSTCXX": machine.host} if machine.host else {})}
    done = subprocess.run(
        [CMAKE, f"-Dwanted={machine.wanted}", f"-Dlisted={machine.listed}", "-P", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode == 0) == (machine.error == ""), done.stderr
    return " ".join(done.stderr.split())


def write_nvcc(path: Path, machine: Machine) -> None:
    known = KNOWN.get(str(machine.nvcc), "")
    path.write_text(
        NVCC.format(
            version=machine.nvcc, known=known, refused=machine.refused, refusal=REFUSAL, devices=machine.devices
        )
    )
    path.chmod(0o755)


@pytest.mark.parametrize("name", MACHINES)
def test_a_build_has_the_cuda_kernels_that_nvcc_can_make_or_says_why_not(name: str, tmp_path: Path) -> None:
    machine = MACHINES[name]
    printed = decide(machine, tmp_path)
    if machine.built:
        assert f"built {machine.built} with " in printed
    else:
        assert (machine.error or f"none: {machine.reason}") in printed
    assert str(tmp_path) not in printed.partition("none: ")[2], (
        "the reason is in the binary, which is to name no folder of its build"
    )


# The flags that make a library of nvcc 12 readable to every driver of CUDA 12, and that of nvcc 13 small.
FLAGS = {
    "12.4": {"-Xfatbin=-compress-all"},
    "12.8": {"-Xfatbin=-compress-all"},
    "13.0": {"--compress-mode=size", "-Werror=all-warnings"},
}


@pytest.mark.parametrize("version", FLAGS)
def test_flags_follow_the_version_and_the_architectures(version: str, tmp_path: Path) -> None:
    printed = decide(Machine(version, "8.0 8.6+PTX"), tmp_path).partition(" with ")[2]
    code = {f"-gencode=arch=compute_{a},code={c}" for a, c in (("80", "sm_80"), ("86", "sm_86"), ("86", "compute_86"))}
    assert set(printed.split(";")) == code | FLAGS[version]


# ---- with the nvcc that is installed ---------------------------------------------------------------------

real_nvcc = shutil.which("nvcc")
needs_nvcc = pytest.mark.skipif(real_nvcc is None, reason="no nvcc on the PATH")


@needs_nvcc
def test_the_words_of_a_real_nvcc_that_refuses_its_host_compiler_are_quoted(tmp_path: Path) -> None:
    gxx = tmp_path / "g++-99"
    gxx.write_text('#!/bin/sh\nexec g++ -U__GNUC__ -D__GNUC__=99 "$@"\n')
    gxx.chmod(0o755)
    script = tmp_path / "decide.cmake"
    script.write_text(
        f"cmake_minimum_required(VERSION 3.25)\ninclude({ROOT}/csrc/configure/cuda.cmake)\n"
        'choose_cuda(AUTO "")\nmessage("none: ${reason_no_cuda}")\n'
    )
    done = subprocess.run(
        [CMAKE, "-P", script], cwd=tmp_path, env={**os.environ, "CUDAHOSTCXX": str(gxx)}, capture_output=True, text=True
    )
    assert re.search(
        r"none: nvcc [\d.]+ failed with the g\+\+-99 host compiler: unsupported GNU version! gcc versions later than "
        r"\d+ are not supported!$",
        done.stderr.strip(),
    )


def configure(build: Path, tools: Path) -> tuple[str, str]:
    """The commands of a build and its facts, after CMake ran in a folder that may hold an earlier run's cache."""
    command = [
        CMAKE,
        "-G",
        "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={NINJA}",
        "-S",
        str(ROOT),
        "-B",
        str(build),
        f"-DFOCAL_EXT_TORCH_ROOT={Path(torch.__file__).parent}",
    ]
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "CUDA_HOME": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (build / "build.ninja").read_text() + (build / "CMakeFiles/rules.ninja").read_text(), (
        build / "facts/build_facts.h"
    ).read_text()


@needs_nvcc
def test_a_kept_cache_follows_a_change_of_nvcc(tmp_path: Path) -> None:
    """The first nvcc stands in for 12.4; all that it compiles, the installed one does."""
    old, new = tmp_path / "old", tmp_path / "new"
    for folder in (old, new):
        folder.mkdir()
    (old / "nvcc").write_text(
        '#!/bin/sh\ncase "$1" in\n--version) echo release 12.4 ;;\n'
        f'--list-gpu-arch) echo compute_75 compute_80 compute_90 ;;\n*) exec {real_nvcc} "$@" ;;\nesac\n'
    )
    (new / "nvcc").write_text(f'#!/bin/sh\nexec {real_nvcc} "$@"\n')
    for folder in (old, new):
        (folder / "nvcc").chmod(0o755)
    commands, facts = configure(tmp_path / "build", old)
    assert "(75 80 90+PTX)" in facts and "(12.4)" in facts
    assert (
        f"{old}/nvcc" in commands
        and "-compress-all" in commands
        and "--compress-mode" not in commands
        and "sm_100" not in commands
    )
    commands, facts = configure(tmp_path / "build", new)
    assert "(12.4)" not in facts and f"{new}/nvcc" in commands and f"{old}/nvcc" not in commands

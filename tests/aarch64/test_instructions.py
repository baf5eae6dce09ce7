# Owns: what the compiled kernels of aarch64 are made of: vector instructions, no function of libm but double's, nothing
# of torch's but C.
# Must not know: what the kernels compute.
from __future__ import annotations

import re
from collections.abc import Iterable

import pytest
from aarch64.emulated import NM, functions, kernel_objects, library
from built_package import command

# Of logits in float32 and narrower, whose arithmetic is float: every loop over negatives, which nearly all logits of a
# detector are. Losses with the focal loss's negatives share its loops.
LOOPS = [name for name in functions() if re.search(r"compute_(alike|varied)<.*Host<", name)]


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_over_negatives_is_vectorised(name: str) -> None:
    text = functions()[name]
    vectors, scalars = (len(re.findall(pattern, text)) for pattern in (r"\bfmla\s+v\d+\.4s", r"\bfn?m(add|sub)\s+s\d"))
    calls_another = vectors == 0 and len(text.splitlines()) < 40 and re.search(r"\bb(l)?\s+\w+ <", text)
    assert scalars == 0 and (vectors >= 36 or calls_another), f"{vectors} fmla of four floats, {scalars} of one"


def losses(names: Iterable[str]) -> set[str]:
    found = (re.search(r"(\w+)<\w*(WholeModulator|AnyModulator)", name.replace("focal_ext::", "")) for name in names)
    return {match[1] for match in found if match}


def test_the_losses_are_all_there() -> None:
    assert losses(LOOPS) == {"SigmoidFocal", "SmoothedSigmoidFocal", "ClippedFocal"}
    assert losses(name for name in functions() if re.search(r"Elements<.*Host<.*::dense\(", name)) == {
        "SigmoidFocal",
        "SmoothedSigmoidFocal",
        "QualityFocal",
        "Varifocal",
        "Asymmetric",
        "MatchabilityAware",
        "IouAwareBce",
        "GaussianFocal",
    }


def test_float_kernels_call_no_function_of_libm() -> None:
    wanted = {
        line.split()[-1]
        for each in kernel_objects()
        for line in command(NM, "--undefined-only", each).splitlines()
        if " U " in line
    }
    assert wanted == {"exp", "log", "log1p", "pow", "memcpy", "memmove", "memset"}  # those of double


def test_the_whole_library_asks_of_torch_what_its_stable_interface_has() -> None:
    wanted = {line.split()[-1].split("@")[0] for line in command(NM, "-D", "--undefined-only", library()).splitlines()}
    assert {"aoti_torch_empty_strided", "torch_parallel_for"} <= wanted
    assert not {name for name in wanted if re.search(r"^_Z\w*(2at|3c10|5torch)", name)}

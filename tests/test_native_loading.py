# Owns: what the package finds wrong with its native library, and says so; test_fallback.py damages whole installations.
# Must not know: losses, other processes, CUDA devices (test_cuda_devices.py).
from __future__ import annotations

import _ctypes
import ctypes
from pathlib import Path

import focal_ext
import pytest
import torch
from focal_ext import _native


@pytest.fixture(autouse=True)
def as_if_nothing_were_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has loaded the library, so that any other is refused (test_second_copy.py)."""
    monkeypatch.setattr(_native, "_other_copy", lambda: None)


@pytest.mark.parametrize(
    "name, value",
    [
        ("FOCAL_EXT_NATIVE", "false"),
        ("FOCAL_EXT_NATIVE", "off"),
        ("FOCAL_EXT_NATIVE", " 0"),
        ("FOCAL_EXT_CPU_LEVEL", "avx2"),
        ("FOCAL_EXT_CPU_LEVEL", "X86-64-V3"),
    ],
)
def test_a_misspelt_value_of_the_environment_is_an_error_with_the_right_ones(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(
        ValueError, match=f"{name}: must be one of {', '.join(_native.SWITCHES[name])}, or not set, got {value!r}"
    ):
        _native._load()


@pytest.mark.parametrize("name", _native.SWITCHES)
def test_a_variable_that_is_empty_is_not_set(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "")
    _native._check_environment()


def test_the_environment_may_ask_for_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCAL_EXT_NATIVE", "0")
    assert "FOCAL_EXT_NATIVE=0 in the environment" in str(_native._load())


def test_a_missing_library_is_said_with_the_way_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FOCAL_EXT_NATIVE", raising=False)
    monkeypatch.setattr(_native, "LIBRARY", tmp_path / "libfocal_ext.so")
    reason = str(_native._load())
    assert "has no libfocal_ext.so" in reason and _native.REINSTALL in reason


@pytest.mark.native
@pytest.mark.parametrize("version", ["2.6.0+cu124", "2.9.1"])
@pytest.mark.parametrize("library", [True, False], ids=["library", "no library"])
def test_a_torch_that_is_too_old_for_the_kernels_is_named(
    version: str, library: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    if not library:
        monkeypatch.setattr(_native, "LIBRARY", tmp_path / "libfocal_ext.so")
    reason = str(_native._load())
    assert f"need torch >= 2.10, this is torch {version}; {'update torch' if library else _native.REINSTALL}" in reason


@pytest.mark.native
@pytest.mark.parametrize("version", ["2.10.0a0+0123abc.nv25.11", "2.10.0", "10.0.0"])
def test_a_torch_that_is_new_enough_is_taken_by_its_number(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    assert _native._load() is None


def test_a_file_that_is_no_library_is_said_with_the_linkers_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FOCAL_EXT_NATIVE", raising=False)
    library = tmp_path / "libfocal_ext.so"
    library.write_bytes(b"not a library, but long enough to have a header" * 4)
    monkeypatch.setattr(_native, "LIBRARY", library)
    reason = str(_native._load())
    assert (
        f"does not load into torch {torch.__version__}" in reason
        and "invalid ELF header" in reason
        and _native.REINSTALL in reason
    )


@pytest.mark.parametrize("error", [OSError("libgone.so: cannot open shared object file: No such file or directory")])
def test_a_library_that_the_linker_does_not_find_may_be_for_another_processor(
    error: OSError, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fail(path: str) -> None:
        raise error

    monkeypatch.delenv("FOCAL_EXT_NATIVE", raising=False)
    monkeypatch.setattr(_native, "LIBRARY", tmp_path)
    monkeypatch.setattr(torch.ops, "load_library", fail)
    assert "not for this processor" in str(_native._load()) and "libgone.so" in str(_native._load())


@pytest.mark.native
def test_a_library_that_lacks_an_op_is_said_to_be_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "OPS", (*_native.OPS, "an_op_of_tomorrow"))
    assert "has no op an_op_of_tomorrow: it is not of version" in str(_native._load())


@pytest.mark.native
def test_a_library_of_another_version_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "__version__", "99.0.0")
    reason = str(_native._load())
    assert f"is of version {focal_ext.__version__}, the package of 99.0.0" in reason and _native.REINSTALL in reason


@pytest.mark.native
def test_the_library_knows_its_facts_and_no_other_names() -> None:
    assert _native._fact("version") == focal_ext.__version__ == _library().focal_ext_version().decode()
    assert _native._fact("cpu_level") in ("baseline", "x86-64-v3", "x86-64-v4")
    assert bool(_native._fact("cuda")) == bool(_native._fact("archs")) != bool(_native._fact("reason_no_cuda"))
    assert _native._fact("no such fact") is None


def test_a_library_without_facts_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "LIBRARY", _ctypes.__file__)
    assert _native._fact("version") is None
    assert _native._facts() == {"cuda": None, "archs": [], "reason_no_cuda": None, "cpu_level": None}


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_native.LIBRARY))
    library.focal_ext_version.restype = ctypes.c_char_p
    return library

# Owns: which devices the CUDA images of a build run on, what is said of the others, and that torch.compile takes the
# answer for a constant.
# Must not know: losses; that there is a GPU, a driver or a build with CUDA kernels.
from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import focal_ext
import pytest
import torch
from focal_ext import _cuda_devices, _native

X86, ARM, NVCC_12_4 = "75 80 90 100+PTX 120", "75 80 87 90 100+PTX 120", "75 80 90+PTX"
T4, A100, A10, ORIN, ADA, H100 = (7, 5), (8, 0), (8, 6), (8, 7), (8, 9), (9, 0)
B200, B300, THOR, RTX_50, SPARK, NEXT = (10, 0), (10, 3), (11, 0), (12, 0), (12, 1), (13, 0)
EVERY = (T4, A100, A10, ORIN, ADA, H100, B200, B300, THOR, RTX_50, SPARK, NEXT)

# A list of images, the devices that they run on without PTX, and those that the driver's compiler adds.
IMAGES = {
    "the default on x86-64": (X86, {T4, A100, A10, ADA, H100, B200, B300, RTX_50, SPARK}, {THOR, NEXT}),
    "the default on aarch64": (ARM, {T4, A100, A10, ORIN, ADA, H100, B200, B300, RTX_50, SPARK}, {THOR, NEXT}),
    "the default of nvcc 12.4": (NVCC_12_4, {T4, A100, A10, ADA, H100}, {B200, B300, THOR, RTX_50, SPARK, NEXT}),
    "a minor version above": ("86", {A10, ADA}, set()),
    "PTX below a Tegra chip": ("80+PTX", {A100, A10, ADA}, {ORIN, H100, B200, B300, THOR, RTX_50, SPARK, NEXT}),
    "a Tegra chip's": ("87", {ORIN}, set()),
    "one architecture and no other": ("90a+PTX 100a", {H100, B200}, set()),
    "one major version": ("100f+PTX", {B200, B300}, set()),
    "none": ("", set(), set()),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_run_on_their_major_version_and_ptx_on_every_later_device(name: str) -> None:
    archs, binary, by_ptx = IMAGES[name]
    for with_ptx, expected in ((False, binary), (True, binary | by_ptx)):
        assert {d for d in EVERY if any(_cuda_devices.runs(arch, d, with_ptx) for arch in archs.split())} == expected


# The toolkit, its images, the driver, the device and the words of the warning; None where the kernels run.
DECISIONS = {
    "no kernels": (
        None,
        "",
        13000,
        H100,
        ("without CUDA kernels (nvcc 12.2 is too old)", "nvcc 12.4 or later", "FOCAL_EXT_CUDA=ON"),
    ),
    "old driver": (
        "13.0",
        X86,
        12080,
        H100,
        ("built with CUDA 13.0", "driver supports CUDA 12.8", "Update the driver", "12.4 or later"),
    ),
    "same driver": ("13.0", X86, 13000, H100, None),
    "newer driver": ("12.8", X86, 13010, H100, None),
    "first driver of the major version": ("12.8", X86, 12000, H100, None),
    "same, before CUDA is initialised": ("12.8", X86, 12000, None, None),
    "no driver, so that tensors are fake": ("13.0", X86, 0, None, None),
    "PTX by a driver that can compile it": ("12.8", X86, 13000, THOR, None),
    "PTX by a driver that cannot": (
        "13.1",
        X86,
        13000,
        THOR,
        ("11.0", "driver of CUDA 13.0", "TORCH_CUDA_ARCH_LIST=11.0", "or update the driver"),
    ),
    "no image": (
        "13.0",
        X86,
        13000,
        ORIN,
        ("75 80 90 100+PTX 120", "compute capability 8.7", "TORCH_CUDA_ARCH_LIST=8.7"),
    ),
    "older than every image": ("12.8", X86, 12080, (7, 0), ("compute capability 7.0", "TORCH_CUDA_ARCH_LIST=7.0")),
}


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "available", True)
    monkeypatch.setattr(_native, "_on_cuda", {})
    monkeypatch.setattr(_native, "_said", set())
    monkeypatch.setattr(torch.version, "hip", None)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int | None]]:
    """A process that has initialised CUDA on two A100 and an Orin; the devices whose capability was asked for."""
    questions: list[int | None] = []
    devices = (A100, A100, ORIN)

    def capability(index: int | None) -> tuple[int, int]:
        questions.append(index)
        return devices[index or 0]

    build(monkeypatch, "13.0", X86, 13000)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
    yield questions


def build(monkeypatch: pytest.MonkeyPatch, cuda: str | None, archs: str, driver: int) -> None:
    facts = {
        "cuda": cuda,
        "archs": archs.split(),
        "reason_no_cuda": None if cuda else "nvcc 12.2 is too old",
        "cpu_level": None,
    }
    monkeypatch.setattr(_native, "_facts", lambda: facts)
    monkeypatch.setattr(_native, "cuda_driver_version", lambda: driver)


@pytest.mark.parametrize("name", DECISIONS)
def test_a_device_takes_the_kernels_or_the_reference_with_one_warning(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, archs, driver, capability, words = DECISIONS[name]
    build(monkeypatch, cuda, archs, driver)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        answers = [_native.runs_on(torch.device("cuda", index)) for index in (0, 0, 1)]
    assert answers == [words is None] * 3
    assert len(said) == (words is not None)
    assert all(word in str(said[0].message) for word in words or ())


def test_every_device_is_asked_once_and_each_has_its_own_answer(asked: list[int | None]) -> None:
    with pytest.warns(RuntimeWarning, match=r"compute capability 8\.7") as said:
        answers = [_native.runs_on(torch.device("cuda", index)) for index in (0, 1, 2, 2, 1, 0)]
    assert answers == [True, True, False, False, True, True]
    assert asked == [0, 1, 2] and len(said) == 1


def test_a_process_without_cuda_is_not_asked_and_asks_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initialising CUDA here would break a later fork; fake tensors on cuda exist in processes without it."""
    build(monkeypatch, "13.0", X86, 13000)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: pytest.fail("initialises CUDA"))
    assert _native.runs_on(torch.device("cuda", 0)) and _native._on_cuda == {}


def test_a_torch_for_rocm_takes_the_reference(asked: list[int | None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    with pytest.warns(RuntimeWarning, match="NVIDIA GPUs only"):
        assert not _native.runs_on(torch.device("cuda", 0))


@pytest.mark.parametrize("index, expected", [(0, 3.0), (2, 1.0)], ids=["with an image", "without"])
def test_the_answer_is_a_constant_to_a_compiled_graph(index: int, expected: float, asked: list[int | None]) -> None:
    torch._dynamo.reset()

    @torch.compile(backend="eager", fullgraph=True)
    def step(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if _native.runs_on(torch.device("cuda", index)) else x - 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [step(torch.tensor(2.0)).item() for _ in range(3)] == [expected] * 3
    assert asked == [index]


@pytest.mark.native
@pytest.mark.parametrize("call", ["function", "module", "pyramid"])
def test_the_warning_names_the_line_that_called(
    call: str, asked: list[int | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "runs_on", lambda device: _native._runs_on_cuda(2))
    x, ids = torch.randn(4, 3), torch.tensor([0, 1, 2, 3])
    calls: dict[str, Callable[[], torch.Tensor]] = {
        "function": lambda: focal_ext.sigmoid_focal_loss(x, ids, reduction="sum"),
        "module": lambda: focal_ext.SigmoidFocalLoss(reduction="sum")(x, ids),
        "pyramid": lambda: focal_ext.pyramid.sigmoid_focal_loss([x.view(1, 3, 2, 2)], ids.view(1, 4), 3),
    }
    with pytest.warns(RuntimeWarning) as said:
        calls[call]()
    assert said[0].filename == __file__

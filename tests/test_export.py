# Owns: torch.export of every loss, and an AOTInductor package run from Python and from a C++ program.
# Must not know: values (test_values.py).
from __future__ import annotations

import subprocess
from pathlib import Path

import focal_ext
import pytest
import torch
from examples.aoti.export import export
from family import Member, every_member
from test_modules import MODULES, every_module, targets_of
from torch import Tensor, nn

ROOT, TORCH = Path(__file__).resolve().parents[1], Path(torch.__file__).parent
LIBRARY = Path(focal_ext.__file__).with_name("libfocal_ext.so")


class Criterion(nn.Module):
    """A loss of logits and ids or dense targets."""

    def __init__(self, loss_of: Member) -> None:
        super().__init__()
        self.loss_of = loss_of

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        return self.loss_of(x, targets, reduction="sum"), self.loss_of(x, targets)


@every_member
@pytest.mark.parametrize("dense", [False, True], ids=["ids", "dense"])
def test_an_exported_loss_gives_the_eager_numbers_for_any_number_of_rows(dense: bool, loss_of: Member) -> None:
    def arguments(rows: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, 5), torch.rand(rows, 5) if dense else torch.randint(-2, 6, (rows,))

    rows = torch.export.Dim("rows", min=2)
    program = torch.export.export(Criterion(loss_of), arguments(8), dynamic_shapes=({0: rows}, {0: rows})).module()
    for count in (8, 3, 700):
        given = arguments(count)
        for got, want in zip(program(*given), Criterion(loss_of)(*given)):
            assert torch.equal(got, want)


@every_module
def test_modules_export_with_their_tensors(module: type[nn.Module]) -> None:
    made = module(**MODULES[module], reduction="sum", normalizer=torch.tensor(2.0), weight=torch.ones(3))
    given = (torch.randn(6, 3), targets_of(module, torch.tensor([0, -1, 3, 2, -2, 1])))
    assert torch.equal(torch.export.export(made, given).module()(*given), made(*given))


PACKAGED = {
    "sigmoid": focal_ext.SigmoidFocalLoss(reduction="sum", normalizer="positives"),
    "softmax": focal_ext.SoftmaxFocalLoss(reduction="sum", normalizer="positives", ignore_index=-2),
}


@pytest.fixture(scope="module", params=PACKAGED)
def packaged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    path = tmp_path_factory.mktemp("aoti") / "loss.pt2"
    export(path, PACKAGED[request.param], classes=5)
    return PACKAGED[request.param], path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/aoti/forward.cpp, compiled."""
    program, abi = tmp_path_factory.mktemp("forward") / "forward", int(torch.compiled_with_cxx11_abi())
    include = [
        f"-I{TORCH / 'include'}",
        f"-I{TORCH / 'include/torch/csrc/api/include'}",
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
    ]
    link = [
        f"-L{TORCH / 'lib'}",
        f"-Wl,-rpath,{TORCH / 'lib'}",
        "-Wl,--no-as-needed",
        "-ltorch",
        "-ltorch_cpu",
        "-lc10",
        "-ldl",
    ]
    subprocess.run(
        ["g++", "-std=c++20", "-O0", str(ROOT / "examples/aoti/forward.cpp"), *include, *link, "-o", str(program)],
        check=True,
    )
    return program


def arguments(rows: int) -> tuple[Tensor, Tensor]:
    """As examples/aoti/forward.cpp makes them."""
    ids = torch.arange(rows)
    return torch.linspace(-6, 6, rows * 5).view(rows, 5), ids.remainder(5).masked_fill(ids.remainder(7) == 6, -2)


@pytest.mark.native
def test_an_aotinductor_package_gives_the_eager_numbers(packaged: tuple[nn.Module, Path]) -> None:
    criterion, path = packaged
    loaded = torch._inductor.aoti_load_package(str(path))
    for rows in (8, 3, 700):
        assert torch.equal(loaded(*arguments(rows)), criterion(*arguments(rows)))


@pytest.mark.native
def test_the_package_runs_from_a_c_plus_plus_program(packaged: tuple[nn.Module, Path], program: Path) -> None:
    criterion, path = packaged
    for rows in (8, 700):
        done = subprocess.run(
            [str(program), str(LIBRARY), str(path), str(rows), "5"], capture_output=True, text=True, check=True
        )
        # printed with 9 digits
        assert float(done.stdout) == pytest.approx(criterion(*arguments(rows)).item(), rel=1e-7)

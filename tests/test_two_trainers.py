# Owns: that the example trains under torchrun as one process with all crops would.
# Must not know: how (two_trainers.py, examples/retinanet/processes.py).
from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("tqdm")  # of the programs that are started
pytest.importorskip("faster_coco_eval")
from examples.retinanet import logbook


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("two_trainers")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    program = [str(Path(__file__).with_name("two_trainers.py")), str(made)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def off(got: list[torch.Tensor], want: list[torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


def test_gradients_are_those_of_one_process_with_all_crops(found: list[dict[str, Any]]) -> None:
    assert found[0]["positives"][0] != found[0]["positives"][1]
    for mine in found:
        assert off(mine["shared"], mine["union"]) < 1e-4  # float32, sums in another order
        assert off(mine["local"], mine["union"]) > 1e-3  # each process by its own positives: something else


def test_a_checkpoint_holds_the_crops_of_every_process(found: list[dict[str, Any]]) -> None:
    following, again = found[0]["following"], found[0]["again"]
    assert all(torch.equal(a, b) for a, b in zip(following, again, strict=True)) and not torch.equal(*following)


def test_the_first_process_speaks_for_all(folder: Path, found: list[dict[str, Any]]) -> None:
    assert [mine["spoke"] for mine in found] == [True, False]
    assert (
        len(logbook.read(folder / "run" / "metrics.csv")) == 4
        and len(torch.load(folder / "run" / "last.pt", weights_only=True)["generators"]) == 2
    )

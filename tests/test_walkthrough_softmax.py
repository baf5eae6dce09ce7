# Owns the softmax head of the walk-through: its loss by hand, its prior, its scores, its weights of classes.
# Must not need a network, a display or the real photographs.

import pytest
import torch
from drawn import NONE

from examples.retinanet import criteria, datasets, softmax
from examples.retinanet.matcher import BACKGROUND, IGNORED
from examples.retinanet.scenes import Scene
from examples.retinanet.session import Session
from examples.retinanet.settings import Settings

CLASSES = 3


def several_classes():
    boxes = torch.tensor([[x, 20.0, x + 20, 44] for x in (4, 34, 64, 94, 124)])
    image = torch.rand(1, 96, 160, generator=torch.Generator().manual_seed(0))
    scene = Scene(image, boxes, torch.tensor([0, 0, 0, 1, 2]), NONE)
    return datasets.Dataset("several", [scene], [scene], CLASSES)


def test_the_softmax_loss_is_the_formula_by_hand_with_background_as_the_last_class():
    logits = torch.randn(2, 30, CLASSES + 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    targets = torch.full((2, 30), BACKGROUND)
    targets[0, :4], targets[1, 5:9] = torch.tensor([0, 1, 2, 2]), IGNORED
    weights = [0.5, 1.0, 1.5]
    total = 0.0
    for row, target in zip(logits.flatten(0, 1), targets.flatten().tolist()):
        if target != IGNORED:
            p = row.softmax(0)[target]
            alpha = 0.75 if target == BACKGROUND else 0.25 * weights[target]
            total += float(alpha * (1 - p) ** 2 * -torch.log(p))
    got = criteria.criterion(Settings(loss="softmax"), weights)(logits, targets)
    assert float(got) == pytest.approx(total / 4, rel=1e-6)  # the weights of classes are float32


def test_the_sigmoid_of_the_scores_is_the_softmax():
    logits = torch.randn(1, 50, CLASSES + 1, generator=torch.Generator().manual_seed(0)) * 5

    class Network(torch.nn.Module):
        num_classes = CLASSES + 1

        def forward(self, images):
            return logits, None

    wrapped = softmax.AsSigmoid(Network())
    assert wrapped.num_classes == CLASSES
    torch.testing.assert_close(wrapped(None)[0].sigmoid(), logits.softmax(-1)[..., :-1], rtol=1e-5, atol=1e-9)


def test_a_softmax_network_starts_at_the_prior_and_trains():
    session = Session(
        Settings(loss="softmax", prior=0.05, crop_size=64, batch_size=2, depth=1, epochs=1), several_classes()
    )
    bias = session.model.classify[-1].bias.reshape(9, CLASSES + 1)
    torch.testing.assert_close(bias.softmax(-1)[:, :-1].sum(-1), torch.full((9,), 0.05))
    rows = [session.step() for _ in range(6)]
    assert rows[-1]["loss"] < rows[0]["loss"] and session.detector.num_classes == CLASSES


def test_inverse_frequency_weighs_every_class_alike_and_the_mean_object_by_one():
    labels = torch.tensor([0] * 6 + [1] * 3 + [2])
    weights = softmax.class_weights(labels, CLASSES, "inverse")
    assert [weight * count for weight, count in zip(weights, (6, 3, 1))] == pytest.approx([10 / 3] * 3)
    assert softmax.class_weights(labels, CLASSES, "same") == [1.0] * 3
    with pytest.raises(ValueError, match="--loss softmax, got --loss focal"):
        criteria.criterion(Settings(class_alpha="inverse"))

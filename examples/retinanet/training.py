# Owns the training loop: batches in, a trained model and its history out.
# Must not know which focal loss or head it runs, where the scene comes from, or how AP is computed and shown.

import time
from dataclasses import dataclass, field

import torch

from .anchors import grid_anchors
from .heads import over_rows
from .losses import box_loss
from .matcher import match
from .scenes import random_crop


@dataclass
class Batch:
    images: torch.Tensor  # [B, channels, size, size]
    targets: torch.Tensor  # [B, N] int64: class id, -1 background, -2 ignored
    truth: torch.Tensor  # [B, N, 4] the box each anchor stands for, where targets >= 0


@dataclass
class History:
    loss: list = field(default_factory=list)  # the sum of both losses, one per step
    focal: list = field(default_factory=list)  # the classification loss alone
    twin: list = field(default_factory=list)  # the same by the other implementation, on the very same feature maps
    # of both on these maps: largest difference / largest gradient
    gradient_difference: list = field(default_factory=list)
    ap50: list = field(default_factory=list)  # pairs of step and AP50
    seconds: float = 0.0  # of the steps alone, without evaluations
    logits: torch.Tensor = None  # of one batch, after the last step
    targets: torch.Tensor = None


def labelled(crop, anchors, **rule):
    """(targets [N], truth [N, 4]) of one crop; rule: the options of matcher.match."""
    targets, matched = match(anchors, crop.boxes, crop.labels, crop.ignored, **rule)
    truth = crop.boxes[matched] if len(crop.boxes) else torch.zeros_like(anchors)
    return targets, truth


def sample(scene, anchors, batch_size, size, generator, rescue=True):
    crops = [random_crop(scene, size, generator) for _ in range(batch_size)]
    targets, truth = zip(*(labelled(crop, anchors, rescue=rescue) for crop in crops))
    return Batch(torch.stack([crop.image for crop in crops]), torch.stack(targets), torch.stack(truth))


def compare(history, twin, features, model, targets, alpha, gamma):
    """Note what `twin` makes of feature maps whose gradient is already there: its loss, and how far its gradient is
    from that one."""
    copies = [x.detach().requires_grad_() for x in features]
    loss = over_rows(twin)(copies, model.classify[-1], model.num_classes, targets, alpha, gamma)
    gradients = torch.autograd.grad(loss, copies)
    history.twin.append(float(loss.detach()))
    scale = max(float(gradient.abs().max()) for gradient in gradients)
    difference = max(float((x.grad - gradient).abs().max()) for x, gradient in zip(features, gradients))
    history.gradient_difference.append(difference / max(scale, torch.finfo(loss.dtype).tiny))


def train(
    model,
    scene,
    head,
    *,
    steps,
    batch_size,
    crop_size,
    learning_rate,
    weight_decay,
    alpha,
    gamma,
    seed,
    twin=None,
    evaluate=None,
    evaluate_at=(),
    progress=None,
    rescue=True,
):
    """Train `model` on random crops of `scene`; the same arguments and seed give the same history.

    head: the way to the classification loss (heads.py). twin: another focal loss, over rows, on the same feature maps
    for comparison only.
    evaluate: model -> AP50, called after each step count in evaluate_at (0 is before the first). progress: step,
    history -> None.
    """
    generator = torch.Generator().manual_seed(seed)
    anchors = grid_anchors(crop_size, crop_size)
    # eps: at the default of 1e-8 a parameter whose gradient is rounding noise takes a full step, and two runs that
    # differ by one rounding part sooner: within 80 steps the loss was measured to differ by up to 1.1 %, at 1e-5 by .45
    # %, with equal AP50.
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay, eps=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = History()

    def evaluated(step):
        if step in evaluate_at:
            history.ap50.append((step, evaluate(model)))

    evaluated(0)
    for step in range(1, steps + 1):
        start = time.perf_counter()
        model.train()
        batch = sample(scene, anchors, batch_size, crop_size, generator, rescue)
        features, code = model.towers(batch.images)
        if twin is not None:
            for x in features:
                x.retain_grad()
        classification = head(features, model.classify[-1], model.num_classes, batch.targets, alpha, gamma)
        loss = classification + box_loss(code, anchors, batch.truth, batch.targets)
        optimizer.zero_grad()
        loss.backward()
        history.focal.append(float(classification.detach()))
        history.loss.append(float(loss.detach()))
        if twin is not None:  # before the step changes the convolution
            compare(history, twin, features, model, batch.targets, alpha, gamma)
        optimizer.step()
        schedule.step()
        history.seconds += time.perf_counter() - start
        evaluated(step)
        if progress is not None:
            progress(step, history)
    history.targets = batch.targets
    with torch.no_grad():
        history.logits = model(batch.images)[0]
    return history

# Owns the steps of docs/walkthrough.md: each takes the data sets it needs and returns the lines it has measured.
# Must not know the document, nor how anything is computed that another file owns.

import math
from dataclasses import replace

import torch
from torch.nn import functional as F

import focal_ext

from . import augment, concentration
from .anchors import grid_anchors
from .boxes import pairwise_iou
from .criteria import box_loss
from .matcher import BACKGROUND, IGNORED
from .session import Session, labelled
from .settings import Settings

CROPS = 64
SETTINGS = {
    "nuclei": Settings(),
    "trees": Settings(data="trees", crop_size=192, batch_size=4, norm="batch", augment=("crop",)),
}
P_T = (0.01, 0.1, 0.5, 0.9, 0.968, 0.99)


def data(datasets):
    """What is there to learn from and to be judged by."""
    yield (
        "| data set | training part, pixels | objects | hold-out, pixels | objects | side of an object, median "
        "(5 to 95 %) |"
    )
    yield "|---|---|---|---|---|---|"
    for dataset in datasets:
        parts = []
        for scenes in (dataset.train, dataset.hold_out):
            pixels = sum(scene.image.shape[-1] * scene.image.shape[-2] for scene in scenes)
            parts += [f"{pixels:,}", str(sum(len(scene.boxes) for scene in scenes))]
        sides = torch.cat([(scene.boxes[:, 2:] - scene.boxes[:, :2]).prod(dim=1).sqrt() for scene in dataset.train])
        low, median, high = torch.quantile(sides, torch.tensor([0.05, 0.5, 0.95])).tolist()
        yield f"| {dataset.name} | {' | '.join(parts)} | {median:.0f} ({low:.0f} to {high:.0f}) |"


def labels(dataset, **rule):
    """[CROPS, N] targets of random crops, and how many objects lie in them."""
    wanted, generator = SETTINGS[dataset.name], torch.Generator().manual_seed(0)
    anchors, targets, boxes = grid_anchors(wanted.crop_size, wanted.crop_size), [], 0
    for _ in range(CROPS):
        crop = augment.draw(dataset.train, wanted.crop_size, wanted.augment, generator)
        boxes += len(crop.boxes)
        targets.append(labelled(crop, anchors, **rule)[0])
    return torch.stack(targets), boxes


def counts(targets):
    return [int((targets >= 0).sum()), int((targets == BACKGROUND).sum()), int((targets == IGNORED).sum())]


def imbalance(datasets):
    yield (
        f"| data set | crop | in the mean of {CROPS} crops: objects | anchors | positives | ignored | negatives "
        "to one positive |"
    )
    yield "|---|---|---|---|---|---|---|"
    for dataset in datasets:
        size = SETTINGS[dataset.name].crop_size
        targets, boxes = labels(dataset)
        positives, negatives, ignored = counts(targets)
        yield (
            f"| {dataset.name} | {size} x {size} | {boxes / CROPS:.1f} | {targets.shape[1]:,} | "
            f"{positives / CROPS:.1f} "
            f"| {ignored / targets.numel():.1%} | **{negatives / positives:.0f}** |"
        )


def formula():
    """By hand with the paper's letters, and by the op; a positive that the network gives the probability p_t."""
    yield (
        "| p_t | cross entropy -log p_t | balanced, alpha .25 | focal, gamma 2, alpha .25 | by the op | cross "
        "entropy / focal, no alpha |"
    )
    yield "|---|---|---|---|---|---|"
    p_t = torch.tensor(P_T, dtype=torch.float64)
    logits, positive = torch.logit(p_t)[:, None], torch.zeros(len(p_t), dtype=torch.int64)
    cross_entropy = -torch.log(p_t)
    focal = 0.25 * (1 - p_t) ** 2 * cross_entropy
    rows = zip(
        P_T,
        cross_entropy,
        0.25 * cross_entropy,
        focal,
        focal_ext.sigmoid_focal_loss(logits, positive, 0.25, 2.0)[:, 0],
        cross_entropy / focal_ext.sigmoid_focal_loss(logits, positive, None, 2.0)[:, 0],
        strict=True,
    )
    for p, *losses, by_op, ratio in rows:
        yield (
            f"| {p} | "
            + " | ".join(f"{float(loss):.3g}" for loss in losses)
            + f" | {float(by_op):.3g} | {float(ratio):,.2f} |"
        )


def prior(datasets):
    """The first step from both priors: classification loss, and the norm of its gradient over all parameters."""
    yield "| data set | loss | first loss, pi .5 | gradient norm | first loss, pi .01 | gradient norm |"
    yield "|---|---|---|---|---|---|"
    for dataset in datasets:
        for loss in ("ce", "focal"):
            cells = []
            for pi in (0.5, 0.01):
                session = Session(replace(SETTINGS[dataset.name], loss=loss, prior=pi), dataset)
                value, _ = session.losses(session.batch())
                value.backward()
                norm = torch.stack([p.grad.norm() for p in session.model.parameters() if p.grad is not None]).norm()
                cells += [f"{float(value.detach()):.4g}", f"{float(norm):.4g}"]
            yield f"| {dataset.name} | {loss} | {' | '.join(cells)} |"


def matching(datasets):
    yield (
        "| data set | --pos-iou | --neg-iou | positives per object | ignored | objects without a positive | the "
        "same without rescue |"
    )
    yield "|---|---|---|---|---|---|---|"
    for dataset in datasets:
        for pos_iou, neg_iou in ((0.4, 0.3), (0.5, 0.4), (0.6, 0.5), (0.5, 0.5)):
            targets, boxes = labels(dataset, pos_iou=pos_iou, neg_iou=neg_iou)
            positives, _, ignored = counts(targets)
            missed = [unmatched(dataset, pos_iou, rescue) for rescue in (True, False)]
            yield (
                f"| {dataset.name} | {pos_iou} | {neg_iou} | {positives / boxes:.1f} | {ignored / targets.numel():.1%} "
                f"| {missed[0]:.1%} | {missed[1]:.1%} |"
            )


def unmatched(dataset, pos_iou, rescue):
    """Share of the objects in random crops that no anchor stands for."""
    wanted, generator, lost, total = SETTINGS[dataset.name], torch.Generator().manual_seed(0), 0, 0
    anchors = grid_anchors(wanted.crop_size, wanted.crop_size)
    for _ in range(CROPS):
        crop = augment.draw(dataset.train, wanted.crop_size, wanted.augment, generator)
        targets, truth = labelled(crop, anchors, pos_iou=pos_iou, neg_iou=min(0.4, pos_iou), rescue=rescue)
        if len(crop.boxes):
            found = pairwise_iou(crop.boxes, truth[targets >= 0]) == 1
            lost, total = lost + int((~found.any(dim=1)).sum()), total + len(crop.boxes)
    return lost / total


def boxes(dataset):
    """Smooth L1 touches positives only."""
    session = Session(SETTINGS[dataset.name], dataset)
    batch = session.batch()
    _, code = session.model(batch.images)
    code = code.detach().requires_grad_()
    loss = box_loss(code, session.anchors, batch.truth, batch.targets)
    loss.backward()
    positive, touched = batch.targets >= 0, (code.grad != 0).any(dim=-1)
    yield (
        f"One batch of {dataset.name}: {batch.targets.numel():,} anchors, {int(positive.sum())} positives; "
        f"smooth L1 {float(loss.detach()):.3f}; anchors with a gradient {int(touched.sum())}, of which not positive "
        f"{int((touched & ~positive).sum())}."
    )
    yield ""
    yield "| error of a code | smooth L1, beta 1/9 | its gradient | squared error / 2 | its gradient |"
    yield "|---|---|---|---|---|"
    for error in (0.01, 0.1, 1.0, 10.0):
        value = torch.tensor(error, requires_grad=True)
        smooth = F.smooth_l1_loss(value, torch.zeros(()), beta=1 / 9)
        smooth.backward()
        yield f"| {error:g} | {float(smooth.detach()):.3g} | {float(value.grad):.3g} | {error**2 / 2:.3g} | {error:g} |"


def smoothing():
    """A right and ever more confident positive."""
    yield "| logit of a positive | p | gradient, no smoothing | gradient, label_smoothing .1 |"
    yield "|---|---|---|---|"
    for x in (0.0, 2.0, 3.0, 4.0, 6.0):
        gradients = []
        for amount in (0.0, 0.1):
            logit = torch.tensor([[x]], dtype=torch.float64, requires_grad=True)
            focal_ext.sigmoid_focal_loss(
                logit, torch.zeros(1, dtype=torch.int64), 0.25, 2.0, "sum", label_smoothing=amount
            ).backward()
            gradients.append(float(logit.grad))
        yield f"| {x:g} | {1 / (1 + math.exp(-x)):.4f} | {gradients[0]:+.2e} | {gradients[1]:+.2e} |"


@torch.no_grad()
def scored(model, dataset):
    """(logits [n, C], targets [n]) of the anchors of all hold-out scenes, which the network has not seen."""
    model.eval()
    logits, targets = [], []
    for scene in dataset.hold_out:
        anchors = grid_anchors(*scene.image.shape[-2:])
        logits.append(model(scene.image[None])[0][0])
        targets.append(labelled(scene, anchors)[0])
    return torch.cat(logits), torch.cat(targets)


def spread(logits, targets):
    """The concentration of the loss in one trained network, for the losses it could have."""
    for positives in (False, True):
        number = int((targets >= 0).sum() if positives else (targets == BACKGROUND).sum())
        yield (
            f"| {number:,} {'positives' if positives else 'negatives'}: share of the loss in the hardest | "
            + " | ".join(f"{share:.0%}" for share in concentration.SHARES)
            + " |"
        )
        yield "|---|" + "---|" * len(concentration.SHARES)
        for gamma, shares in concentration.table(logits, targets, positives).items():
            yield f"| gamma {gamma:g} | " + " | ".join(f"{share:.2f}" for share in shares) + " |"
        yield ""


def same_numbers(logits, targets):
    """The three ways to one loss on a trained network's own logits."""
    x, t = logits[..., 0].double(), (targets == 0).double()
    p = torch.sigmoid(x)
    p_t, a_t = p * t + (1 - p) * (1 - t), 0.25 * t + 0.75 * (1 - t)
    kept = targets != IGNORED
    by_hand = float((a_t * (1 - p_t) ** 2 * -torch.log(p_t))[kept].sum() / t.sum())
    by_op = float(focal_ext.sigmoid_focal_loss(logits, targets, 0.25, 2.0, "sum", normalizer="positives"))
    yield (
        f"By hand in float64 {by_hand:.7f}, by the op in float32 {by_op:.7f}: a relative difference of "
        f"{abs(by_hand - by_op) / by_hand:.0e}."
    )

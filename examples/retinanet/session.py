# Owns one training as a state that can be saved between any two steps and taken up again to the same numbers.
# Must not know the command line, files of metrics, or how AP is computed.

import os
from dataclasses import asdict, dataclass

import torch

import focal_ext

from . import augment, processes, schedules
from .anchors import grid_anchors
from .criteria import box_loss, criterion
from .matcher import match
from .model import build


@dataclass
class Batch:
    images: torch.Tensor  # [B, channels, size, size]
    targets: torch.Tensor  # [B, N] int64: class id, -1 background, -2 ignored
    truth: torch.Tensor  # [B, N, 4] the box each anchor stands for, where targets >= 0


def labelled(crop, anchors, **rule):
    """(targets [N], truth [N, 4]) of one crop; rule: the options of matcher.match."""
    targets, matched = match(anchors, crop.boxes, crop.labels, crop.ignored, **rule)
    return targets, crop.boxes[matched] if len(crop.boxes) else torch.zeros_like(anchors)


class Session:
    def __init__(self, settings, dataset):
        self.settings, self.dataset, self.done = settings, dataset, 0
        sizes = {"num_classes": dataset.num_classes, "in_channels": dataset.channels, "depth": settings.depth}
        self.model = build(settings.seed, norm=settings.norm, **sizes)
        focal_ext.init_prior_(self.model.classify[-1], settings.prior)
        self.network = processes.together(self.model)
        self.criterion = criterion(settings)
        self.anchors = grid_anchors(settings.crop_size, settings.crop_size)
        self.generator = torch.Generator().manual_seed(settings.seed + processes.rank())
        # eps: at the default of 1e-8 a parameter whose gradient is rounding noise takes a full step. Two runs that
        # differ by one rounding then part sooner: their losses differed by 1.1 % within 80 steps, and by .45 % at 1e-5.
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, eps=1e-5
        )

    def batch(self):
        """The next crops with the labels of their anchors; moves the session's random generator on."""
        wanted = self.settings
        crops = [
            augment.draw(self.dataset.train, wanted.crop_size, wanted.augment, self.generator)
            for _ in range(wanted.batch_size)
        ]
        targets, truth = zip(
            *(labelled(crop, self.anchors, pos_iou=wanted.pos_iou, neg_iou=wanted.neg_iou) for crop in crops)
        )
        return Batch(torch.stack([crop.image for crop in crops]), torch.stack(targets), torch.stack(truth))

    def losses(self, batch):
        """(classification, boxes): two numbers with a gradient."""
        logits, code = self.network(batch.images)
        share = processes.share(batch.targets, self.dataset.num_classes)
        return share * self.criterion(logits, batch.targets), share * box_loss(
            code, self.anchors, batch.truth, batch.targets
        )

    def step(self):
        """One step; what is worth noting of it as {name: number}."""
        self.model.train()
        rate = self.settings.lr * schedules.factor(self.done, self.settings)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        classification, boxes = self.losses(self.batch())
        self.optimizer.zero_grad()
        (classification + boxes).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.done += 1
        return {
            "step": self.done,
            "loss": float((classification + boxes).detach()),
            "classification": float(classification.detach()),
            "boxes": float(boxes.detach()),
            "gradient_norm": float(norm),
            "lr": rate,
        }

    def save(self, path, **beside):
        """Whole or not at all: an interruption while writing leaves the checkpoint before. All processes call it, the
        first one writes."""
        generators = processes.gathered(self.generator.get_state())
        if processes.rank() > 0:
            return
        torch.save(
            {
                "settings": asdict(self.settings),
                "done": self.done,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "generators": generators,
                **beside,
            },
            f"{path}.new",
        )
        os.replace(f"{path}.new", path)

    def load(self, checkpoint):
        generators = checkpoint["generators"]
        if len(generators) != processes.count():
            raise ValueError(
                f"--resume: the checkpoint is of {len(generators)} processes, got {processes.count()}; start as many "
                "with torchrun"
            )
        self.done = checkpoint["done"]
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.generator.set_state(generators[processes.rank()])

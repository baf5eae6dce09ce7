# Owns one training as a state that can be saved between any two steps and taken up again to the same numbers.
# Must not know the command line, files of metrics, or how AP is computed.

import os
from dataclasses import asdict

import torch

import focal_ext

from . import augment, processes, schedules, softmax
from .anchors import grid_anchors
from .criteria import criterion
from .losses import box_loss
from .model import build
from .training import Batch, labelled


class Session:
    def __init__(self, settings, dataset):
        self.settings, self.dataset, self.done = settings, dataset, 0
        columns = dataset.num_classes + (settings.loss == "softmax")
        self.model = build(
            settings.seed, num_classes=columns, in_channels=dataset.channels, depth=settings.depth, norm=settings.norm
        )
        if settings.loss == "softmax":
            softmax.init_prior_(self.model.classify[-1], settings.prior, columns)
            self.detector = softmax.AsSigmoid(self.model)
        else:
            focal_ext.init_prior_(self.model.classify[-1], settings.prior)
            self.detector = self.model
        self.network = processes.together(self.model)
        labels = torch.cat([scene.labels for scene in dataset.train])
        self.criterion = criterion(settings, softmax.class_weights(labels, dataset.num_classes, settings.class_alpha))
        self.anchors = grid_anchors(settings.crop_size, settings.crop_size)
        self.generator = torch.Generator().manual_seed(settings.seed + processes.rank())
        # eps: see training.train.
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

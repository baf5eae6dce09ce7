# Owns a training that notes what a second implementation makes of the same feature maps.
# Must not know which losses or heads these are, or how close is close enough.

import time
from dataclasses import dataclass, field

import torch

from .criteria import box_loss
from .heads import over_rows
from .model import rows
from .precision import precision
from .session import Session


@dataclass
class History:
    loss: list = field(default_factory=list)  # the sum of both losses, one per step
    focal: list = field(default_factory=list)  # the classification loss alone
    twin: list = field(default_factory=list)  # the same by the other implementation, on the very same feature maps
    # of both on these maps: largest difference / largest gradient
    gradient_difference: list = field(default_factory=list)
    ap50: list = field(default_factory=list)  # pairs of step and AP50
    seconds: float = 0.0  # of the steps alone, without evaluations


class TwinSession(Session):
    """head: the way from feature maps to the classification loss (heads.py). twin: another focal loss, over rows, or
    None."""

    def __init__(self, settings, dataset, head, twin=None):
        super().__init__(settings, dataset)
        self.head, self.twin, self.history = head, twin and over_rows(twin), History()
        if twin:  # before the step changes the convolution
            self.optimizer.register_step_pre_hook(lambda *_: self.compare())

    def classification(self, way, features, targets):
        model, settings = self.model, self.settings
        return way(features, model.classify[-1], model.num_classes, targets, settings.alpha, settings.gamma)

    def losses(self, batch):
        features, code = self.model.towers(batch.images)
        self.seen = features, batch.targets
        if self.twin:
            for x in features:
                x.retain_grad()
        return (
            self.classification(self.head, features, batch.targets),
            box_loss(code, self.anchors, batch.truth, batch.targets),
        )

    def compare(self):
        """Note the twin's loss of the last feature maps, and how far its gradient is from theirs."""
        features, targets = self.seen
        copies = [x.detach().requires_grad_() for x in features]
        loss = self.classification(self.twin, copies, targets)
        gradients = torch.autograd.grad(loss, copies)
        scale = max(float(gradient.abs().max()) for gradient in gradients)
        difference = max(float((x.grad - gradient).abs().max()) for x, gradient in zip(features, gradients))
        self.history.twin.append(float(loss.detach()))
        self.history.gradient_difference.append(difference / max(scale, torch.finfo(loss.dtype).tiny))

    def train(self, progress=lambda row: None):
        """All steps; the figures of the trained network. progress: called with the row of each step."""
        history, every = self.history, self.settings.evaluate_every * self.settings.epoch_steps
        result = self.evaluate()
        for step in range(1, self.settings.steps + 1):
            start = time.perf_counter()
            row = self.step()
            history.seconds += time.perf_counter() - start
            history.loss.append(row["loss"])
            history.focal.append(row["classification"])
            if step % every == 0 or step == self.settings.steps:
                result = self.evaluate()
            progress(row)
        return result

    def evaluate(self):
        result = precision(self.model, self.dataset)
        self.history.ap50.append((self.done, result["ap50"]))
        return result

    @torch.no_grad()
    def last_batch(self):
        """{"logits", "targets"} of the last batch, by the trained network."""
        features, targets = self.seen
        convolution, classes = self.model.classify[-1], self.model.num_classes
        return {"logits": rows([convolution(x) for x in features], classes), "targets": targets}

# Owns: what each of two processes does for test_two_trainers.py: the example's session and command, under torchrun.
# Must not know: what should come out.
#
#     torchrun --nproc-per-node 2 tests/two_trainers.py FOLDER
from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from drawn import scene
from examples.retinanet import __main__ as command
from examples.retinanet import datasets, processes
from examples.retinanet.criteria import box_loss
from examples.retinanet.session import Batch, Session
from examples.retinanet.settings import Settings
from torch import Tensor

TINY = Settings(epochs=2, epoch_steps=2, batch_size=2, crop_size=64, evaluate_every=1, depth=1, pos_iou=0.7)


def gradients(session: Session, loss: Tensor) -> list[Tensor]:
    session.optimizer.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in session.model.parameters()]


def main(folder: Path) -> None:
    dataset = datasets.Dataset("nuclei", [scene(0), scene(1, count=2)], [scene(2)])
    datasets.LOADERS["nuclei"] = lambda cache: dataset
    with processes.group():
        session = Session(TINY, dataset)
        batch = session.batch()
        shared = gradients(session, sum(session.losses(batch)))
        logits, code = session.network(batch.images)
        local = gradients(
            session,
            session.criterion(logits, batch.targets) + box_loss(code, session.anchors, batch.truth, batch.targets),
        )
        every = processes.gathered(batch)
        both = Batch(*(torch.cat([getattr(b, name) for b in every]) for name in ("images", "targets", "truth")))
        logits, code = session.model(both.images)
        union = gradients(
            session, session.criterion(logits, both.targets) + box_loss(code, session.anchors, both.truth, both.targets)
        )
        session.save(folder / "one.pt")
        following = processes.gathered(session.batch().images)
        processes.gathered(None)  # the file is there
        resumed = Session(TINY, dataset)
        resumed.load(torch.load(folder / "one.pt", weights_only=True))
        again = processes.gathered(resumed.batch().images)
        result = command.main(
            [
                "--epochs",
                "2",
                "--epoch-steps",
                "2",
                "--batch-size",
                "2",
                "--crop-size",
                "64",
                "--depth",
                "1",
                "--out",
                str(folder / "run"),
            ]
        )
    found = {
        "shared": shared,
        "local": local,
        "union": union,
        "positives": [int((b.targets >= 0).sum()) for b in every],
        "following": following,
        "again": again,
        "spoke": result is not None,
    }
    torch.save(found, folder / (os.environ["RANK"] + ".pt"))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))

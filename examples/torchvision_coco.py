# Owns: training torchvision's RetinaNet or FCOS with the fused loss on any data set in COCO's format.
# Must not know: how the loss or the average precision is computed.
"""python examples/torchvision_coco.py --train IMAGES JSON --val IMAGES JSON --out one.pt
Several GPUs: torchrun --nproc-per-node 8 examples/torchvision_coco.py ... Called again with the same --out it goes on
where it stopped."""

import argparse
import os

import torch
import torch.distributed as dist
from faster_coco_eval import COCOeval_faster, init_as_pycocotools
from focal_ext.compat.torchvision import convert_, losses_and_detections
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from torchvision.datasets import CocoDetection
from torchvision.models import detection
from torchvision.ops import box_convert
from torchvision.transforms.functional import to_tensor
from tqdm import tqdm

init_as_pycocotools()  # CocoDetection reads by it
OPTIONS = (  # name, default, what it is
    ("--model", "retinanet_resnet50_fpn_v2", "or another RetinaNet or FCOS of torchvision"),
    ("--backbone", "DEFAULT", 'its weights; "": random ones'),
    ("--epochs", 12, None),
    ("--batch", 4, "images of a step in each process"),
    ("--lr", 0.005, "of SGD; rises for 500 steps and falls to 0"),
    ("--workers", 4, "that read images, in each process"),
    ("--size", 800, "shorter side of an image; the longer is at most 5/3 of it"),
)


class Boxes(CocoDetection):
    """Images in [0, 1] with boxes x1, y1, x2, y2 and labels 0..C-1 in the order of category ids; half of them mirrored
    if asked."""

    def __init__(self, images, annotations, mirrors=False):
        super().__init__(images, annotations, transform=to_tensor)
        self.mirrors, self.categories = mirrors, sorted(self.coco.getCatIds())

    def __getitem__(self, index):
        image, annotations = super().__getitem__(index)
        kept = [a for a in annotations if not a.get("iscrowd") and min(a["bbox"][2:]) > 0]
        boxes = box_convert(torch.tensor([a["bbox"] for a in kept], dtype=torch.float32).reshape(-1, 4), "xywh", "xyxy")
        if self.mirrors and torch.rand(()) < 0.5:
            image, boxes[:, [0, 2]] = image.flip(-1), image.shape[-1] - boxes[:, [2, 0]]
        labels = [self.categories.index(a["category_id"]) for a in kept]
        return image, {"boxes": boxes, "labels": torch.tensor(labels, dtype=torch.int64)}, self.ids[index]


def on(device, batch):
    return [image.to(device) for image, _, _ in batch], [
        {key: value.to(device) for key, value in target.items()} for _, target, _ in batch
    ]


@torch.no_grad()
def evaluated(model, loader, data, device, world):
    """Mean losses of validation and the average precision, over the parts of all processes."""
    sums, results, average = {}, [], (0.0, 0.0)
    for batch in tqdm(loader, "validation", leave=False, disable=None):
        losses, detections = losses_and_detections(model, *on(device, batch))
        sums = {name: sums.get(name, 0.0) + float(loss) * len(batch) / len(data) for name, loss in losses.items()}
        for (_, _, image), found in zip(batch, detections):
            for box, label, score in zip(
                box_convert(found["boxes"], "xyxy", "xywh").tolist(), found["labels"].tolist(), found["scores"].tolist()
            ):
                results.append({"image_id": image, "category_id": data.categories[label], "bbox": box, "score": score})
    parts = [(sums, results)] * world
    if world > 1:
        dist.all_gather_object(parts, (sums, results))
    if results := [result for _, part in parts for result in part]:  # the evaluator refuses an empty list
        (
            evaluator := COCOeval_faster(data.coco, data.coco.loadRes(results), "bbox", print_function=lambda *_: None)
        ).run()
        average = evaluator.stats
    means = {f"validation {name}": sum(part.get(name, 0.0) for part, _ in parts) for name in sums}
    return {**means, "AP": float(average[0]), "AP50": float(average[1])}


def main(arguments=None):
    """Trains, and returns the figures of every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", nargs=2, required=True, metavar=("IMAGES", "JSON"))
    parser.add_argument("--val", nargs=2, required=True, metavar=("IMAGES", "JSON"))
    parser.add_argument("--out", required=True, help="file of the weights, the state and the figures of each epoch")
    for name, default, text in OPTIONS:
        parser.add_argument(name, type=type(default), default=default, help=text)
    parser.add_argument("--amp", action="store_true", help="bfloat16 where autocast takes it")
    parser.add_argument("--plain", action="store_true", help="torchvision's own loss, to compare")
    args, rank, world = (
        parser.parse_args(arguments),
        int(os.environ.get("RANK", 0)),
        int(os.environ.get("WORLD_SIZE", 1)),
    )
    device = (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )
    if world > 1:
        dist.init_process_group()
    data, held_out = Boxes(*args.train, mirrors=True), Boxes(*args.val)
    options, sampler = (
        {"batch_size": args.batch, "num_workers": args.workers, "collate_fn": list},
        DistributedSampler(data, world, rank),
    )
    loader, validation = (
        DataLoader(data, sampler=sampler, **options),
        DataLoader(held_out, sampler=range(rank, len(held_out), world), **options),
    )
    size = {"min_size": args.size, "max_size": args.size * 5 // 3}
    model = getattr(detection, args.model)(
        num_classes=len(data.categories), weights_backbone=args.backbone or None, **size
    )
    model = (model if args.plain else convert_(model)).to(device)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], args.lr, momentum=0.9, weight_decay=1e-4
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 500) * (1 - step / (args.epochs * len(loader)))
    )
    kept, log = {"model": model, "optimizer": optimizer, "schedule": schedule}, []
    if os.path.exists(args.out):
        log = (state := torch.load(args.out, map_location=device, weights_only=True))["log"]
        for name, part in kept.items():
            part.load_state_dict(state[name])
    parallel = DistributedDataParallel(model) if world > 1 else model
    for epoch in range(len(log), args.epochs):
        sampler.set_epoch(epoch)
        parallel.train()
        for batch in (bar := tqdm(loader, f"epoch {epoch + 1}", disable=None)):
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                loss = sum(parallel(*on(device, batch)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            bar.set_postfix(loss=loss.item())
        log.append(
            {"epoch": epoch + 1, "loss": loss.item(), **evaluated(model.eval(), validation, held_out, device, world)}
        )
        if rank == 0:
            print(log[-1])
            torch.save({**{name: part.state_dict() for name, part in kept.items()}, "log": log}, args.out)
    if world > 1:
        dist.destroy_process_group()
    return log


if __name__ == "__main__":
    main()

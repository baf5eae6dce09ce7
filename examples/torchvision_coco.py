# Owns: training torchvision's RetinaNet or FCOS with the fused loss on any data set in COCO's format.
# Must not know: how the loss or the average precision is computed.
"""python examples/torchvision_coco.py --train IMAGES JSON --val IMAGES JSON --out one.pt
Several GPUs: torchrun --nproc-per-node 8 examples/torchvision_coco.py ... Called again with the same --out it goes on
where it stopped. --model is a RetinaNet or FCOS of torchvision; --backbone its weights, "" for none; --batch and
--workers are of each process; --lr rises for 500 steps and falls to 0; --size is an image's shorter side."""

import argparse
import os

import torch
from faster_coco_eval import COCOeval_faster, init_as_pycocotools
from focal_ext.compat.torchvision import convert_, losses_and_detections
from torch.utils.data import DataLoader, DistributedSampler
from torchvision import datasets, transforms
from torchvision.models import detection
from torchvision.ops import box_convert
from tqdm import tqdm

init_as_pycocotools()  # CocoDetection reads by it
NAMES = ("--model", "retinanet_resnet50_fpn_v2"), ("--backbone", "DEFAULT")
NUMBERS = ("--epochs", 12), ("--batch", 4), ("--lr", 0.005), ("--workers", 4), ("--size", 800)


class Boxes(datasets.CocoDetection):
    """Images in [0, 1] with boxes x1, y1, x2, y2 and labels 0..C-1 in the order of category ids."""

    def __init__(self, images, annotations, mirrors=False):
        super().__init__(images, annotations, transform=transforms.functional.to_tensor)
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
    return [image.to(device) for image, _, _ in batch], [{k: v.to(device) for k, v in t.items()} for _, t, _ in batch]


@torch.no_grad()
def evaluated(model, loader, data, device, world):
    """Mean losses of validation and the average precision, over the parts of all processes."""
    sums, results, average = {}, [], (0.0, 0.0)
    for batch in tqdm(loader, "validation", leave=False, disable=None):
        losses, detections = losses_and_detections(model, *on(device, batch))
        sums = {name: sums.get(name, 0.0) + float(loss) * len(batch) / len(data) for name, loss in losses.items()}
        for (_, _, image), found in zip(batch, detections):
            found["boxes"] = box_convert(found["boxes"], "xyxy", "xywh")
            for box, label, score in zip(*(found[name].tolist() for name in ("boxes", "labels", "scores"))):
                results.append({"image_id": image, "category_id": data.categories[label], "bbox": box, "score": score})
    parts = [(sums, results)] * world
    if world > 1:
        torch.distributed.all_gather_object(parts, (sums, results))
    if results := [result for _, part in parts for result in part]:  # the evaluator refuses an empty list
        evaluator = COCOeval_faster(data.coco, data.coco.loadRes(results), "bbox", print_function=lambda *_: None)
        evaluator.run()
        average = evaluator.stats
    means = {f"validation {name}": sum(part.get(name, 0.0) for part, _ in parts) for name in sums}
    return {**means, "AP": float(average[0]), "AP50": float(average[1])}


def main(arguments=None):
    """Trains, and returns the figures of every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--train", "--val"):
        parser.add_argument(name, nargs=2, required=True, metavar=("IMAGES", "JSON"))
    parser.add_argument("--out", required=True, help="file of the weights, the state and the figures of each epoch")
    for name, default in (*NAMES, *NUMBERS):
        parser.add_argument(name, type=type(default), default=default, help="default: %(default)s")
    parser.add_argument("--amp", action="store_true", help="bfloat16 where autocast takes it")
    parser.add_argument("--plain", action="store_true", help="torchvision's own loss, to compare")
    args, env = parser.parse_args(arguments), {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, **os.environ}
    rank, local, world = (int(env[name]) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"))
    device = torch.device(f"cuda:{local}" if torch.cuda.is_available() else "cpu")
    if world > 1:
        torch.distributed.init_process_group()
    data, held_out = Boxes(*args.train, mirrors=True), Boxes(*args.val)
    options = {"batch_size": args.batch, "num_workers": args.workers, "collate_fn": list}
    loader = DataLoader(data, sampler=(sampler := DistributedSampler(data, world, rank)), **options)
    validation = DataLoader(held_out, sampler=range(rank, len(held_out), world), **options)
    size = {"min_size": args.size, "max_size": args.size * 5 // 3, "num_classes": len(data.categories)}
    model = getattr(detection, args.model)(weights_backbone=args.backbone or None, **size)
    model = (model if args.plain else convert_(model)).to(device)
    optimizer, steps = torch.optim.SGD(model.parameters(), args.lr, 0.9, weight_decay=1e-4), args.epochs * len(loader)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, (step + 1) / 500) * (1 - step / steps))
    state = torch.load(args.out, device, weights_only=True) if os.path.exists(args.out) else {"log": []}
    kept, log = {"model": model, "optimizer": optimizer, "schedule": rates}, state["log"]
    for name in kept.keys() & state.keys():
        kept[name].load_state_dict(state[name])
    parallel = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for epoch in range(len(log), args.epochs):
        sampler.set_epoch(epoch)
        parallel.train()
        for batch in (bar := tqdm(loader, f"epoch {epoch + 1}", disable=None)):
            with torch.autocast(device.type, torch.bfloat16, enabled=args.amp):
                loss = sum(parallel(*on(device, batch)).values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            bar.set_postfix(loss=loss.item())
        means = evaluated(model.eval(), validation, held_out, device, world)
        log.append({"epoch": epoch + 1, "loss": loss.item(), **means})
        if rank == 0:
            print(log[-1])
            torch.save({**{name: part.state_dict() for name, part in kept.items()}, "log": log}, args.out)
    if world > 1:
        torch.distributed.destroy_process_group()
    return log


if __name__ == "__main__":
    main()

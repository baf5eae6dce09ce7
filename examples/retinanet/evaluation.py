# Owns the average precision: truth and detections in, the COCO evaluator's figures out.
# Must not know the network or how the detections were made.

from faster_coco_eval import COCO, COCOeval_faster


def _as_xywh(box):
    x1, y1, x2, y2 = box.tolist()
    return [x1, y1, x2 - x1, y2 - y1]


def _annotation(identity, image, box, label, crowd):
    x, y, width, height = _as_xywh(box)
    return {
        "id": identity,
        "image_id": image,
        "category_id": label,
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": int(crowd),
    }


def average_precision(scenes, detections, num_classes=1):
    """{"ap": mean over IoU .50 to .95, "ap50": at IoU .50}, 0 to 1, over images given as pairs of equal order.

    Regions a scene ignores are crowds to the evaluator: a detection that lies half or more in one does not count either
    way.
    """
    truth, results = [], []
    for image, (scene, found) in enumerate(zip(scenes, detections, strict=True)):
        for box, label in zip(scene.boxes, scene.labels.tolist()):
            truth.append(_annotation(len(truth) + 1, image, box, label, crowd=False))
        for box in scene.ignored:
            for label in range(num_classes):
                truth.append(_annotation(len(truth) + 1, image, box, label, crowd=True))
        for box, score, label in zip(found.boxes, found.scores.tolist(), found.labels.tolist()):
            results.append({"image_id": image, "category_id": label, "bbox": _as_xywh(box), "score": score})
    if not results:  # the evaluator refuses an empty list; nothing found is a precision of 0
        return {"ap": 0.0, "ap50": 0.0}
    dataset = COCO(
        {
            "info": {},
            "images": [{"id": image} for image in range(len(scenes))],
            "annotations": truth,
            "categories": [{"id": label, "name": str(label)} for label in range(num_classes)],
        }
    )
    evaluator = COCOeval_faster(dataset, dataset.loadRes(results), "bbox", print_function=lambda *_: None)
    evaluator.run()
    return {"ap": float(evaluator.stats[0]), "ap50": float(evaluator.stats[1])}

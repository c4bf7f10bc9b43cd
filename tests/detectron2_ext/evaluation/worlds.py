"""Small random data sets with random predictions, made as awkward as the formats allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from faster_coco_eval.core import mask as mask_api

from detectron2_ext.structures import Instances
from exchange.annotations import AnnotationFile, frequency


@dataclass(frozen=True)
class World:
    """The records of an annotation file, to be changed at will."""

    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    @property
    def file(self) -> AnnotationFile:
        return AnnotationFile.of_records("world.json", **vars(self))

    @property
    def category_ids(self) -> np.ndarray:
        return np.sort([category["id"] for category in self.categories])


def random_world(
    seed: int, *, lvis: bool, num_images: int = 14, num_classes: int = 9, crowds: bool = False
) -> tuple[World, dict[int, Instances]]:
    """A data set and predictions for each of its images.

    Scores have few levels (ties within and between images); the last two classes have no annotation; objects
    range over the three areas, and some, annotated or predicted, have none; polygons, compressed and plain run
    lengths alternate; predictions follow the objects with errors of place and class, and some follow nothing.
    """
    rng = np.random.default_rng(seed)
    category_ids = np.sort(rng.choice(np.arange(1, 40), num_classes, replace=False)).tolist()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    predictions: dict[int, Instances] = {}
    for image_id in rng.permutation(np.arange(1, num_images + 1) * 3).tolist():
        height, width = (int(v) for v in rng.integers(130, 190, 2))
        present = rng.choice(num_classes - 2, rng.integers(0, 4), replace=False)
        boxes, classes = [], []
        for class_index in present:
            for _ in range(rng.integers(1, 5)):
                box = _box(rng, height, width)
                boxes.append(box)
                classes.append(int(class_index))
                annotations.append(
                    _annotation(len(annotations) + 1, image_id, category_ids[class_index], box, height, width)
                    | {"iscrowd": int(crowds and rng.random() < 0.25)}
                )
                if len(annotations) % 9 == 0:
                    annotations[-1]["area"] = 0
        absent = np.setdiff1d(np.arange(num_classes), present)
        images.append({"id": image_id, "height": height, "width": width, "file_name": f"{image_id}.png"})
        if lvis:
            images[-1]["neg_category_ids"] = [
                category_ids[c] for c in rng.choice(absent, rng.integers(0, 4), replace=False)
            ]
            images[-1]["not_exhaustive_category_ids"] = [
                category_ids[c] for c in present if rng.random() < 0.3
            ]
        predictions[image_id] = _predict(rng, boxes, classes, num_classes, height, width)
    categories: list[dict[str, Any]] = [{"id": c, "name": f"class {c}"} for c in category_ids]
    if lvis:
        for position, category in enumerate(categories):
            category["frequency"] = frequency((5, 50, 500)[position % 3])
    return World(images, annotations, categories), predictions


def _box(rng: np.random.Generator, height: int, width: int) -> list[float]:
    """XYXY; a side of 8 to 125 pixels, so that all three areas occur."""
    w, h = np.exp(rng.uniform(np.log(8), np.log(125), 2))
    x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return [float(v) for v in (x, y, x + w, y + h)]


def _annotation(
    number: int, image_id: int, category_id: int, box: list[float], height: int, width: int
) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    polygon = [x1, y1, x2, y1, x2, y2, (x1 + x2) / 2, y2 - 0.2 * (y2 - y1), x1, y2]
    rle = mask_api.merge(mask_api.frPyObjects([polygon], height, width))
    encoded = {"size": rle["size"], "counts": rle["counts"].decode()}
    if number % 4 == 0:
        pixels = mask_api.decode([rle]).ravel(order="F").astype(int)
        changes = np.flatnonzero(np.diff(pixels, prepend=0))
        encoded["counts"] = np.diff([0, *changes, len(pixels)]).tolist()
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": float(mask_api.area([rle])[0]),
        "segmentation": [polygon] if number % 2 else encoded,
    }


def _predict(
    rng: np.random.Generator,
    boxes: list[list[float]],
    classes: list[int],
    num_classes: int,
    height: int,
    width: int,
) -> Instances:
    found, labels = [], []
    for box, class_index in zip(boxes, classes, strict=True):
        for _ in range(rng.integers(0, 4)):
            found.append((np.array(box) + rng.normal(0, 4, 4)).tolist())
            labels.append(class_index if rng.random() < 0.8 else int(rng.integers(num_classes)))
    for _ in range(rng.integers(0, 6)):
        found.append(_box(rng, height, width))
        labels.append(int(rng.integers(num_classes)))
    corners = torch.tensor(found, dtype=torch.float32).reshape(-1, 4)
    corners[:, 0::2] = corners[:, 0::2].clamp(0, width)
    corners[:, 1::2] = corners[:, 1::2].clamp(0, height)
    corners[:, 2:] = torch.maximum(corners[:, 2:], corners[:, :2])
    masks = torch.ones(len(found), 4, 4)
    masks[rng.random(len(found)) < 0.5, :2, :2] = 0
    masks[6::7] = 0
    scores = torch.from_numpy(rng.integers(1, 8, len(found)) / 8.0).float()
    predicted = Instances(
        (height, width),
        pred_boxes=corners,
        scores=scores,
        pred_classes=torch.tensor(labels, dtype=torch.int64),
        pred_masks=masks,
    )
    return predicted[(corners[:, 2:] > corners[:, :2]).all(1)]

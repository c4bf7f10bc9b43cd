"""LVIS evaluation of boxes and masks: the training stage's scoring against the ``lvis`` package.

Both start from the same annotation file and the same predictions in memory, and both score boxes and masks. The
work is of LVIS's kind: 1,203 categories of which an image has a dozen, as many known to be absent, 300 predictions
an image. Met means that no score differs by more than 1e-6, too.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from typing import Any

import numpy as np
import torch

from detectron2_ext.evaluation.predictions import Predictions
from detectron2_ext.evaluation.scoring import CocoTruth, Evaluation
from detectron2_ext.structures import Instances
from exchange import files
from exchange.annotations import frequency, read_annotations
from tools.benchmarks import times_faster

_IMAGES, _CLASSES, _OBJECTS, _ABSENT, _PREDICTIONS = 200, 1203, 12, 10, 300
_HEIGHT, _WIDTH = 240, 320
_REPEATS = 3
TARGET, _ALLOWED = 1.0, 1e-6


def measure(device: str) -> dict[str, Any]:
    """Seconds of both sides, medians of turns taken alternately; ``device`` makes no difference."""
    rng = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {"ours": [], "other": []}
    with tempfile.TemporaryDirectory() as folder:
        path = files.join(folder, "annotations.json")
        category_ids = np.arange(1, _CLASSES + 1)
        content, predictions = _work(rng)
        files.write_json(path, content)
        records = [json.loads(record) for record in predictions.to_json(category_ids)]
        for _ in range(_REPEATS):
            theirs = _timed(seconds["other"], lambda: _score_with_lvis(path, records))
            ours = _timed(
                seconds["ours"],
                lambda: CocoTruth(read_annotations(path)).score(predictions),
            )
    difference = _largest_difference(ours, theirs)
    own, other = (statistics.median(seconds[side]) for side in ("ours", "other"))
    return {
        "ours": own,
        "other": other,
        "unit": "seconds",
        **(faster := times_faster(own, other, TARGET)),
        "met": faster["met"] and difference <= _ALLOWED,
        "largest_difference": difference,
        "ap_boxes": ours.box["AP"],
    }


def _timed(seconds: list[float], run: Any) -> Any:
    started = time.perf_counter()
    result = run()
    seconds.append(time.perf_counter() - started)
    return result


def _score_with_lvis(path: str, records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    np.float = float  # type: ignore[attr-defined]  # lvis 0.5.3 was written for an older NumPy
    from lvis import LVIS, LVISEval, LVISResults

    truth, results = LVIS(path), {}
    for iou_type in ("bbox", "segm"):
        # With a box beside the mask the package would take the areas from the box.
        left_out = "bbox" if iou_type == "segm" else "segmentation"
        chosen = [{key: value for key, value in r.items() if key != left_out} for r in records]
        evaluator = LVISEval(truth, LVISResults(truth, chosen), iou_type)
        evaluator.run()
        results[iou_type] = dict(evaluator.results)
    return results


def _largest_difference(ours: Evaluation, theirs: dict[str, dict[str, float]]) -> float:
    return max(
        abs((-1.0 if value is None else value / 100) - theirs[iou_type][name])
        for iou_type, summary in (("bbox", ours.box), ("segm", ours.mask))
        for name, value in summary.items()
    )


def _work(rng: np.random.Generator) -> tuple[dict[str, Any], Predictions]:
    chance = 1.0 / np.arange(1, _CLASSES + 1)
    chance /= chance.sum()
    images, annotations, found = [], [], []
    for image_id in range(1, _IMAGES + 1):
        classes = rng.choice(_CLASSES, _OBJECTS, p=chance)
        absent = np.setdiff1d(rng.choice(_CLASSES, _ABSENT, p=chance), classes)
        boxes = _boxes(rng, _OBJECTS)
        images.append(
            {
                "id": image_id,
                "height": _HEIGHT,
                "width": _WIDTH,
                "neg_category_ids": (absent + 1).tolist(),
                "not_exhaustive_category_ids": (np.unique(classes[:2]) + 1).tolist(),
            }
        )
        for class_index, (x, y, w, h) in zip(classes.tolist(), boxes.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": class_index + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "segmentation": [_ellipse(x, y, w, h).ravel().tolist()],
                }
            )
        found.append(_predict(rng, image_id, classes, absent, boxes))
    categories = [
        {"id": c + 1, "name": f"class {c + 1}", "frequency": frequency(int(2000 * chance[c] / chance[0]))}
        for c in range(_CLASSES)
    ]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return content, Predictions.concatenate(found)


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """XYWH, float64 (count, 4)."""
    sizes = np.exp(rng.uniform(np.log(12), np.log(200), (count, 2)))
    return np.column_stack([rng.uniform(0, 1, (count, 2)) * ((_WIDTH, _HEIGHT) - sizes), sizes])


def _ellipse(x: float, y: float, w: float, h: float) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.column_stack([x + w / 2 * (1 + np.cos(angles)), y + h / 2 * (1 + np.sin(angles))])


def _predict(
    rng: np.random.Generator, image_id: int, classes: np.ndarray, absent: np.ndarray, boxes: np.ndarray
) -> Predictions:
    """Each object several times, shifted, with classes that are often wrong but mostly of the image's."""
    which = rng.integers(0, len(boxes), _PREDICTIONS)
    shifted = boxes[which] + rng.normal(0, 6, (_PREDICTIONS, 4))
    shifted[:, 2:] = np.maximum(shifted[:, 2:], 4)
    labels = np.where(
        rng.random(_PREDICTIONS) < 0.5, classes[which], rng.choice([*classes, *absent], _PREDICTIONS)
    )
    corners = np.column_stack([shifted[:, :2], shifted[:, :2] + shifted[:, 2:]])
    corners = corners.clip(0, (_WIDTH, _HEIGHT) * 2)
    axis = np.linspace(-1, 1, 28)
    ellipse = torch.from_numpy(np.hypot(axis, axis[:, None]) < 1).float()
    instances = Instances(
        (_HEIGHT, _WIDTH),
        pred_boxes=torch.from_numpy(corners).float(),
        scores=torch.from_numpy(rng.random(_PREDICTIONS)).float(),
        pred_classes=torch.from_numpy(labels),
        pred_masks=ellipse.expand(_PREDICTIONS, -1, -1),
    )
    return Predictions.from_instances(image_id, instances, _PREDICTIONS)

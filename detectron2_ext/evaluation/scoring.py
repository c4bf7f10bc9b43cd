"""Average precision by the rules of LVIS and COCO: faster-coco-eval's matching, a category at a time.

A category's average precision depends on its own objects in the images that are annotated for it, so scoring
the categories one by one gives the same numbers as all at once and never builds the table of all images times
all categories (24 million pairs on LVIS).
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from faster_coco_eval.core import mask as mask_api
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster

from detectron2_ext.evaluation.predictions import Predictions
from exchange.annotations import AnnotationFile
from exchange.errors import UserError

_log = logging.getLogger(__name__)

Summary = dict[str, float | None]
_IOU_50, _IOU_75 = 0, 5  # places of these thresholds in 0.5, 0.55, …, 0.95
_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}


@dataclass(frozen=True)
class Evaluation:
    """Average precisions in percent, None where there is nothing to average.

    ``box`` and ``mask`` hold AP, AP50, AP75, APs, APm, APl and, for LVIS, APr, APc, APf; ``box_ap`` and
    ``mask_ap`` the AP of each class.
    """

    box: Summary
    mask: Summary
    box_ap: list[float | None]
    mask_ap: list[float | None]


class GroundTruth:
    """The annotations of a data set, arranged for scoring.

    ``federated`` (LVIS, Gupta et al. 2019, section 2): a category counts only in the images that are known to
    contain it or known not to, and unmatched objects are ignored where it is not annotated exhaustively.
    Objects without area do not exist for LVIS, neither annotated nor predicted ones.
    """

    def __init__(self, annotations: AnnotationFile) -> None:
        self.category_ids = annotations.category_ids
        self.frequencies = [category.get("frequency") for category in annotations.categories]
        self.federated = all(self.frequencies)
        self.kind = "lvis" if self.federated else "coco"
        self.images = {image["id"]: image for image in annotations.images}
        self.max_detections = 300 if self.federated else 100
        self._by_category: dict[int, list[dict[str, Any]]] = defaultdict(list)
        require_fields(annotations)
        for annotation in annotations.annotations:
            if annotation["area"] > 0 or not self.federated:
                self._by_category[annotation["category_id"]].append(annotation)
        self._judged = {
            (image_id, category_id)
            for image_id, image in self.images.items()
            for category_id in image.get("neg_category_ids", ())
        }
        for category_id, objects in self._by_category.items():
            self._judged.update((annotation["image_id"], category_id) for annotation in objects)

    def counted(self, predictions: Predictions) -> npt.NDArray[np.bool_]:
        """Which predictions the rules look at, (N,): for LVIS a small part, the rest may be forgotten."""
        if not self.federated:
            return np.ones(len(predictions), dtype=bool)
        return predictions.are_among(self._judged, self.category_ids)

    def score(self, predictions: Predictions) -> Evaluation:
        """Scores boxes and masks of all predictions on the data set."""
        predictions = predictions.select(self.counted(predictions))
        predictions = predictions.select(np.lexsort((predictions.image_ids, predictions.class_indices)))
        summaries, per_class = {}, {}
        for iou_type in ("bbox", "segm"):
            precision = np.stack(list(_precision_of_classes(self, predictions, iou_type)))
            summaries[iou_type] = _summarize(precision, self.frequencies, self.federated)
            per_class[iou_type] = [_percent(of_class[..., _AREAS[""]]) for of_class in precision]
        return Evaluation(summaries["bbox"], summaries["segm"], per_class["bbox"], per_class["segm"])

    def objects(self, category_id: int) -> list[dict[str, Any]]:
        """The annotated objects of one category, as fresh records with ids from 1."""
        return [
            {
                "id": number,
                "image_id": annotation["image_id"],
                "category_id": category_id,
                "bbox": annotation["bbox"],
                "area": annotation["area"],
                "segmentation": annotation["segmentation"],
                # LVIS has no crowds, and its evaluation does not look at the flag.
                "iscrowd": 0 if self.federated else annotation.get("iscrowd", 0),
            }
            for number, annotation in enumerate(self._by_category[category_id], start=1)
        ]


def require_fields(annotations: AnnotationFile) -> None:
    """Raises UserError for an annotation without what evaluation needs."""
    for annotation in annotations.annotations:
        lacking = [name for name in ("bbox", "area", "segmentation") if name not in annotation]
        if lacking:
            raise UserError(
                f"{annotations.path}: annotation {annotation.get('id')} has no {lacking[0]!r}, which evaluation "
                "needs: add it"
            )


def _precision_of_classes(
    ground_truth: GroundTruth, predictions: Predictions, iou_type: str
) -> Iterator[npt.NDArray[np.float64]]:
    """Yields for each class its precision (10 IoU thresholds, 101 recalls, 4 areas), -1 where undefined.

    ``predictions`` are sorted by class.
    """
    numbers = np.arange(len(ground_truth.category_ids) + 1)
    bounds = np.searchsorted(predictions.class_indices, numbers)
    for index, category_id in enumerate(ground_truth.category_ids.tolist()):
        objects = ground_truth.objects(category_id)
        of_class = predictions.select(np.arange(bounds[index], bounds[index + 1]))
        found = _records(of_class, category_id, iou_type)
        if ground_truth.federated:
            found = [record for record in found if record["area"] > 0]
        if objects:
            yield _match(ground_truth, objects, found, category_id, iou_type)
        else:
            yield np.full((10, 101, 4), -1.0)


def _match(
    ground_truth: GroundTruth,
    objects: list[dict[str, Any]],
    found: list[dict[str, Any]],
    category_id: int,
    iou_type: str,
) -> npt.NDArray[np.float64]:
    image_ids = sorted({record["image_id"] for record in objects + found})
    images = [ground_truth.images[image_id] for image_id in image_ids]
    # The group of the category does not matter here; an evaluator in LVIS style wants one.
    categories = [{"id": category_id, "name": str(category_id), "frequency": "f"}]
    annotated, predicted = (
        COCO({"images": images, "annotations": records, "categories": categories})
        for records in (objects, found)
    )
    evaluator = COCOeval_faster(
        annotated,
        predicted,
        iou_type,
        print_function=_log.debug,
        lvis_style=ground_truth.federated,
        rle_iou_max_workers=1,
    )
    evaluator.params.maxDets = [ground_truth.max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    precision: npt.NDArray[np.float64] = evaluator.eval["precision"][:, :, 0, :, -1]
    return precision


def _records(predictions: Predictions, category_id: int, iou_type: str) -> list[dict[str, Any]]:
    """Predictions of one category as faster-coco-eval takes them; areas are those of ``iou_type``."""
    segmentations = [
        {"size": size, "counts": counts}
        for size, counts in zip(predictions.sizes.tolist(), predictions.counts, strict=True)
    ]
    if iou_type == "bbox":
        areas = predictions.boxes[:, 2] * predictions.boxes[:, 3]
    else:
        areas = mask_api.area(segmentations) if segmentations else np.zeros(0)
    columns = zip(
        predictions.image_ids.tolist(),
        predictions.boxes.tolist(),
        predictions.scores.tolist(),
        areas.tolist(),
        segmentations,
        strict=True,
    )
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": category_id,
            "bbox": box,
            "score": score,
            "area": area,
            "segmentation": segmentation,
            "iscrowd": 0,
        }
        for number, (image_id, box, score, area, segmentation) in enumerate(columns, start=1)
    ]


def _summarize(precision: npt.NDArray[np.float64], frequencies: list[str | None], federated: bool) -> Summary:
    """Means over classes; ``precision`` is (C, 10, 101, 4)."""
    summary = {
        "AP": _percent(precision[..., 0]),
        "AP50": _percent(precision[:, _IOU_50, :, 0]),
        "AP75": _percent(precision[:, _IOU_75, :, 0]),
    }
    summary |= {f"AP{name}": _percent(precision[..., area]) for name, area in _AREAS.items() if name}
    if federated:
        groups = np.array(frequencies)
        summary |= {f"AP{group}": _percent(precision[groups == group][..., 0]) for group in "rcf"}
    return summary


def _percent(precision: npt.NDArray[np.float64]) -> float | None:
    defined = precision[precision > -1]
    return float(defined.mean()) * 100 if defined.size else None

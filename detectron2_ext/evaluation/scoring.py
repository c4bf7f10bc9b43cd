"""Average precision by the rules of LVIS and COCO: faster-coco-eval's matching, a category at a time.

A category's average precision depends on its own objects in the images that are annotated for it, so scoring
the categories one by one gives the same numbers as all at once and never builds the table of all images times
all categories (24 million pairs on LVIS).
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from faster_coco_eval.core import mask as mask_api
from faster_coco_eval.core.coco import COCO
from faster_coco_eval.core.faster_eval_api import COCOeval_faster
from torch.utils.data import DataLoader
from tqdm import tqdm

from detectron2_ext.data.loader import load_batches, start_worker
from detectron2_ext.evaluation.confusions import TakenFor
from detectron2_ext.evaluation.predictions import Predictions
from exchange.annotations import AnnotationFile

_log = logging.getLogger(__name__)

_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}  # places of the objects' sizes in faster-coco-eval's tables
_IOU_50, _IOU_75 = 0, 5  # places of these thresholds in 0.5, 0.55, …, 0.95
_A_PROCESS = 5000  # predictions that are worth a process more: a quarter of a second

Summary = dict[str, float | None]


@dataclass(frozen=True)
class Evaluation:
    """Average precisions in percent, None where there is nothing to average.

    ``box`` and ``mask`` hold AP, AP50, AP75, APs, APm, APl and, for LVIS, APr, APc, APf; ``box_ap`` and
    ``mask_ap`` the AP of each class. ``confusions``: what the objects of each class were taken for, see
    :class:`~detectron2_ext.evaluation.confusions.Confusions`; empty where nobody counted it.
    """

    box: Summary
    mask: Summary
    box_ap: list[float | None]
    mask_ap: list[float | None]
    confusions: Sequence[TakenFor] = ()


class Truth(ABC):
    """The annotations of a data set, arranged for scoring by a benchmark's rules.

    ``kind``: format of the result file, ``lvis`` or ``coco``. The objects stay in the file's arrays until
    :meth:`score`, so that a process that does not score keeps none.

    Raises UserError for an annotation without what evaluation needs.
    """

    kind = "coco"

    def __init__(self, annotations: AnnotationFile) -> None:
        annotations.require("bbox", "area", "segmentation", why=", which evaluation needs")
        self.annotations = annotations
        self.category_ids = annotations.category_ids
        self._image_ids = np.sort(annotations.image_ids)
        self._judged: npt.NDArray[np.int64] | None = None  # sorted numbers of pairs; None: all count

    @cached_property
    def images(self) -> dict[int, dict[str, Any]]:
        """The image records by id."""
        return self.annotations.image_records()

    def judge_only(self, image_ids: npt.ArrayLike, category_ids: npt.ArrayLike) -> None:
        """From now on only these pairs count, among them those of a category that the data set has; both (P,)."""
        wanted = np.asarray(category_ids, dtype=np.int64)
        known = np.isin(wanted, self.category_ids)
        classes = np.searchsorted(self.category_ids, wanted[known])
        self._judged = np.unique(self._pairs(np.asarray(image_ids, dtype=np.int64)[known], classes))

    def _pairs(
        self, image_ids: npt.NDArray[np.int64], class_indices: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """A number for each pair; the images must be of the data set."""
        return np.searchsorted(self._image_ids, image_ids) * len(self.category_ids) + class_indices

    def counted(self, predictions: Predictions) -> npt.NDArray[np.bool_]:
        """Which predictions the rules look at, (N,): for LVIS a small part, the rest may be forgotten."""
        if self._judged is None:
            return np.ones(len(predictions), dtype=bool)
        pairs = self._pairs(predictions.image_ids, predictions.class_indices)
        places = np.searchsorted(self._judged, pairs)
        counted = places < len(self._judged)
        counted[counted] = self._judged[places[counted]] == pairs[counted]
        return counted

    def score(self, predictions: Predictions, processes: int | None = None) -> Evaluation:
        """Scores boxes and masks of all predictions on the data set.

        Classes are scored in ``processes`` side by side, 0 for this one; by default one a core, as far as there is
        work for them. The scores are the same bits.

        Raises UserError when one of them died.
        """
        predictions = self.in_order(predictions.select(self.counted(predictions)))
        if processes is None:
            processes = min(_cores(), len(predictions) // _A_PROCESS)
        of_classes = list(predictions.by_class(len(self.category_ids)))
        loader: DataLoader = DataLoader(
            _Classes(self, of_classes),
            batch_size=None,
            # The largest first, so that all processes end at about the same time.
            sampler=np.argsort([-len(found) for found in of_classes], kind="stable"),
            num_workers=processes,
            collate_fn=_as_it_is,
            prefetch_factor=16 if processes else None,
            worker_init_fn=start_worker,
            generator=torch.Generator(),  # the training's random numbers are its own
        )
        scored = load_batches(loader, "scores", "leave it fewer cores (taskset)")
        of_class: dict[int, Sequence[npt.NDArray[np.float64]]] = dict(
            tqdm(scored, "scoring", len(of_classes), unit="class", delay=1)
        )
        tables = zip(*(of_class[place] for place in range(len(of_classes))), strict=True)
        (box, box_ap), (mask, mask_ap) = (self.summarize(np.stack(table)) for table in tables)
        return Evaluation(box, mask, box_ap, mask_ap)

    @abstractmethod
    def in_order(self, predictions: Predictions) -> Predictions:
        """The predictions by their classes, those of a class as :meth:`precision` wants them."""

    @abstractmethod
    def precision(self, class_index: int, predictions: Predictions, iou_type: str) -> npt.NDArray[np.float64]:
        """What one class scores, in the benchmark's own dimensions, NaN where undefined.

        ``predictions``: of the class. ``iou_type``: ``bbox`` or ``segm``.
        """

    @abstractmethod
    def summarize(self, precision: npt.NDArray[np.float64]) -> tuple[Summary, list[float | None]]:
        """The scores, and the AP of each class; ``precision``: of all classes, (classes, ...)."""


@dataclass(frozen=True)
class _Classes:
    """The scores of boxes and of masks of each class, computed where they are asked for."""

    truth: Truth
    predictions: Sequence[Predictions]

    def __getitem__(self, place: int) -> tuple[int, list[npt.NDArray[np.float64]]]:
        found = self.predictions[place]
        return int(place), [self.truth.precision(place, found, kind) for kind in ("bbox", "segm")]


def _cores() -> int:
    """What this process may use of the machine; 0 where its memory is not shared with processes that it forks."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0


def _as_it_is(item: Any) -> Any:
    return item


def percent(precisions: npt.NDArray[np.float64]) -> float | None:
    """Mean of what is not NaN, times 100."""
    defined = precisions[~np.isnan(precisions)]
    return float(defined.mean()) * 100 if defined.size else None


class CocoTruth(Truth):
    """Scores by the rules of COCO or, where every category has a frequency, LVIS.

    ``federated`` (LVIS, Gupta et al. 2019, section 2): a category counts only in the images that are known to
    contain it or known not to, and unmatched objects are ignored where it is not annotated exhaustively.
    Objects without area do not exist for LVIS, neither annotated nor predicted ones.
    """

    def __init__(self, annotations: AnnotationFile) -> None:
        super().__init__(annotations)
        self.frequencies = [category.get("frequency") for category in annotations.categories]
        self.federated = all(self.frequencies)
        self.max_detections = 300 if self.federated else 100
        order = np.argsort(annotations.object_classes, kind="stable")
        if self.federated:
            order = order[annotations.areas[order] > 0]
        of_classes = annotations.object_classes[order]
        self._by_class = np.split(order, np.searchsorted(of_classes, np.arange(1, len(self.category_ids))))
        if self.federated:
            self.kind = "lvis"
            absent_from, absent = annotations.id_pairs("neg_category_ids")
            owners = annotations.image_ids[annotations.object_images[order]]
            self.judge_only(
                np.concatenate([absent_from, owners]),
                np.concatenate([absent, self.category_ids[of_classes]]),
            )

    def in_order(self, predictions: Predictions) -> Predictions:
        return predictions.select(np.argsort(predictions.class_indices, kind="stable"))

    def summarize(self, precision: npt.NDArray[np.float64]) -> tuple[Summary, list[float | None]]:
        summary = {
            "AP": percent(precision[..., 0]),
            "AP50": percent(precision[:, _IOU_50, :, 0]),
            "AP75": percent(precision[:, _IOU_75, :, 0]),
        }
        summary |= {f"AP{name}": percent(precision[..., area]) for name, area in _AREAS.items() if name}
        if self.federated:
            groups = np.array(self.frequencies)
            summary |= {f"AP{group}": percent(precision[groups == group][..., 0]) for group in "rcf"}
        return summary, [percent(of_class[..., 0]) for of_class in precision]

    def precision(self, class_index: int, predictions: Predictions, iou_type: str) -> npt.NDArray[np.float64]:
        """Precision of one class (10 IoU thresholds, 101 recalls, 4 areas), NaN where undefined."""
        category_id = int(self.category_ids[class_index])
        objects = self._objects(class_index)
        if not objects:
            return np.full((10, 101, 4), np.nan)
        found = _records(predictions, category_id, iou_type)
        if self.federated:
            found = [record for record in found if record["area"] > 0]
        image_ids = sorted({record["image_id"] for record in objects + found})
        images = [self.images[image_id] for image_id in image_ids]
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
            lvis_style=self.federated,
            rle_iou_max_workers=1,
        )
        evaluator.params.maxDets = [self.max_detections]
        evaluator.evaluate()
        evaluator.accumulate()
        precision: npt.NDArray[np.float64] = evaluator.eval["precision"][:, :, 0, :, -1]
        return np.where(precision > -1, precision, np.nan)

    def _objects(self, class_index: int) -> list[dict[str, Any]]:
        """The annotated objects of one category, as fresh records with ids from 1."""
        truth, places = self.annotations, self._by_class[class_index]
        columns = zip(
            places.tolist(),
            truth.image_ids[truth.object_images[places]].tolist(),
            truth.boxes[places].tolist(),
            truth.areas[places].tolist(),
            truth.crowd[places].tolist(),
            strict=True,
        )
        return [
            {
                "id": number,
                "image_id": image_id,
                "category_id": int(self.category_ids[class_index]),
                "bbox": box,
                "area": area,
                "segmentation": truth.segmentation(place),
                # LVIS has no crowds, and its evaluation does not look at the flag.
                "iscrowd": int(crowd and not self.federated),
            }
            for number, (place, image_id, box, area, crowd) in enumerate(columns, start=1)
        ]


def _records(predictions: Predictions, category_id: int, iou_type: str) -> list[dict[str, Any]]:
    """Predictions of one category as faster-coco-eval takes them; areas are those of ``iou_type``."""
    segmentations = predictions.masks()
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

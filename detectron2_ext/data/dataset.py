"""The images and objects of an annotation file, in a few flat arrays that loader processes share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pycocotools.mask as coco_mask

from exchange.annotations import AnnotationFile, read_annotations
from exchange.errors import UserError
from exchange.segmentations import enclosing

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunLengths:
    """A mask in COCO's run length encoding: ``size`` is (height, width), ``counts`` the compressed runs."""

    size: tuple[int, int]
    counts: bytes


Polygon = np.ndarray  # float32 (P, 2): x, y in pixels of the image as it stands upright
Segmentation = list[Polygon] | RunLengths


@dataclass(frozen=True)
class ImageRecord:
    """One image and its objects.

    ``boxes``: float32 (N, 4) XYXY; ``classes``: int64 (N,); ``crowd``: bool (N,). ``first_object``: place of the
    first of them in the data set.
    """

    file_name: str
    image_id: int
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    first_object: int


class DetectionDataset:
    """Images with annotated objects, after LVIS or COCO.

    The annotations are held as flat arrays and not as millions of Python objects, so that the processes of a
    loader share the memory: reading one touches no reference count that would copy its page.

    An object that cannot be learnt is left out, counted and logged: a box without area, or a segmentation without
    any polygon of three points or more. ``iscrowd`` objects are kept and marked.

    Args:
        annotations: the file's content. A box is XYWH there; class indices follow the sorted category ids.
        image_root: folder (or fsspec URL) that the images' names are relative to; empty: they are whole paths.

    Raises:
        UserError: an annotation has no box, or an image has no name.
    """

    def __init__(self, annotations: AnnotationFile, image_root: str) -> None:
        self.category_ids = annotations.category_ids
        self.category_names = [annotations.category_names[i] for i in self.category_ids.tolist()]
        self._path = annotations.path
        self._root = f"{image_root.rstrip('/')}/" if image_root else ""
        images = annotations.images
        self._names = pa.array(list(annotations.file_names().values()), pa.large_string())
        self.image_ids = np.array([image["id"] for image in images], dtype=np.int64)
        self.sizes = np.array([(i["height"], i["width"]) for i in images], dtype=np.int32).reshape(-1, 2)

        place = {image_id: index for index, image_id in enumerate(self.image_ids.tolist())}
        image_of = np.array([place[a["image_id"]] for a in annotations.annotations], dtype=np.int64)
        kept: list[int] = []
        boxes: list[tuple[float, float, float, float]] = []
        polygons: list[list[np.ndarray]] = []  # flat
        runs: list[bytes | None] = []
        for index in np.argsort(image_of, kind="stable").tolist():
            annotation = annotations.annotations[index]
            box = self._box(annotation)
            parts, counts = _usable(annotation.get("segmentation"), self.sizes[image_of[index]].tolist())
            if box[2] <= box[0] or box[3] <= box[1] or not (parts or counts):
                continue
            kept.append(index)
            boxes.append(box)
            polygons.append(parts)
            runs.append(counts)
        dropped = len(image_of) - len(kept)
        if dropped:
            _log.warning(
                "%s: left out %d of %d objects: their box has no area, or their segmentation is not usable",
                annotations.path,
                dropped,
                len(image_of),
            )
        objects = [annotations.annotations[index] for index in kept]
        self.boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
        self.classes = np.searchsorted(
            self.category_ids, np.array([o["category_id"] for o in objects], dtype=np.int64)
        )
        self.crowd = np.array([bool(o.get("iscrowd", 0)) for o in objects], dtype=bool)
        outlines = pa.array(polygons, pa.large_list(pa.large_list(pa.float32())))
        self._first_polygon = outlines.offsets.to_numpy()
        self._first_coordinate = outlines.values.offsets.to_numpy()
        self._coordinates = outlines.values.values.to_numpy()
        self._runs = pa.array(runs, pa.large_binary())
        self.image_of_object = image_of[kept]
        self._first = np.searchsorted(self.image_of_object, np.arange(len(images) + 1))

    @classmethod
    def read(cls, annotation_file: str, image_root: str) -> DetectionDataset:
        """The data set of an annotation file; raises UserError as
        :func:`exchange.annotations.read_annotations`."""
        return cls(read_annotations(annotation_file), image_root)

    @property
    def num_classes(self) -> int:
        return len(self.category_ids)

    def __len__(self) -> int:
        return len(self.image_ids)

    def path(self, index: int) -> str:
        """Path or URL of an image."""
        return f"{self._root}{self._names[index].as_py()}"

    def record(self, index: int) -> ImageRecord:
        """One image with its objects (views of the shared arrays)."""
        objects = slice(int(self._first[index]), int(self._first[index + 1]))
        height, width = self.sizes[index].tolist()
        return ImageRecord(
            self.path(index),
            int(self.image_ids[index]),
            height,
            width,
            self.boxes[objects],
            self.classes[objects],
            self.crowd[objects],
            objects.start,
        )

    def segmentation(self, object_index: int) -> Segmentation:
        """Polygons or run lengths of an object, by its place in ``boxes``."""
        counts = self._runs[object_index].as_py()
        if counts is not None:
            height, width = self.sizes[self.image_of_object[object_index]].tolist()
            return RunLengths((height, width), counts)
        first, last = self._first_polygon[object_index : object_index + 2].tolist()
        ends = self._first_coordinate[first : last + 1].tolist()
        return [self._coordinates[start:end].reshape(-1, 2) for start, end in pairwise(ends)]

    def trainable_images(self) -> np.ndarray:
        """Indices of the images that have an object other than a crowd: int64."""
        return np.unique(self.image_of_object[~self.crowd])

    def dicts(self) -> list[dict[str, Any]]:
        """The data set as Detectron2's list of dictionaries (boxes XYXY_ABS, mode 0)."""
        return [self._dict(self.record(index)) for index in range(len(self))]

    def _dict(self, record: ImageRecord) -> dict[str, Any]:
        annotations = []
        for offset in range(len(record.boxes)):
            segmentation = self.segmentation(record.first_object + offset)
            annotations.append(
                {
                    "bbox": record.boxes[offset].tolist(),
                    "bbox_mode": 0,
                    "category_id": int(record.classes[offset]),
                    "iscrowd": int(record.crowd[offset]),
                    "segmentation": {"size": list(segmentation.size), "counts": segmentation.counts}
                    if isinstance(segmentation, RunLengths)
                    else [polygon.reshape(-1).tolist() for polygon in segmentation],
                }
            )
        return {
            "file_name": record.file_name,
            "image_id": record.image_id,
            "height": record.height,
            "width": record.width,
            "annotations": annotations,
        }

    def _box(self, annotation: dict[str, Any]) -> tuple[float, float, float, float]:
        if "bbox" not in annotation:
            raise UserError(f"{self._path}: annotation {annotation.get('id')} has no 'bbox': add it")
        x, y, width, height = annotation["bbox"]
        return x, y, x + width, y + height


def _usable(segmentation: Any, image_size: Sequence[int]) -> tuple[list[np.ndarray], bytes | None]:
    """What encloses pixels in a JSON segmentation: polygons (x, y in turn) or compressed run lengths."""
    if not isinstance(segmentation, dict):
        return [np.array(part, dtype=np.float32) for part in enclosing(segmentation or ())], None
    counts = segmentation["counts"]
    if isinstance(counts, list):
        counts = coco_mask.frPyObjects(segmentation, *image_size)["counts"]
    return [], counts.encode() if isinstance(counts, str) else counts


def class_frequencies(dataset: DetectionDataset, images: Sequence[int] | np.ndarray) -> np.ndarray:
    """Share of ``images`` that contain each class (crowds not counted): float64 (C,)."""
    chosen = np.zeros(len(dataset), dtype=bool)
    chosen[images] = True
    relevant = chosen[dataset.image_of_object] & ~dataset.crowd
    pairs = np.unique(dataset.image_of_object[relevant] * dataset.num_classes + dataset.classes[relevant])
    return np.bincount(pairs % dataset.num_classes, minlength=dataset.num_classes) / max(len(images), 1)

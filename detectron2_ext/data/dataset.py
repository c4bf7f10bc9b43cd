"""The images and objects of an annotation file that can be learnt, in flat arrays that loader processes share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pycocotools.mask as coco_mask

from exchange.annotations import AnnotationFile, read_annotations
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
        self._annotations = annotations
        self._root = f"{image_root.rstrip('/')}/" if image_root else ""
        self._names = pa.array(annotations.file_names(), pa.large_string())
        self.image_ids, self.sizes = annotations.image_ids, annotations.image_sizes

        order = np.argsort(annotations.object_images, kind="stable")
        annotations.require("bbox")
        corners = annotations.boxes[order]
        corners[:, 2:] += corners[:, :2]
        usable = annotations.enclosing()[order] & (corners[:, 2:] > corners[:, :2]).all(axis=1)
        self._places = order[usable]  # of the objects among the annotations
        if len(self._places) < len(order):
            _log.warning(
                "%s: left out %d of %d objects: their box has no area, or their segmentation is not usable",
                annotations.path,
                len(order) - len(self._places),
                len(order),
            )
        self.boxes = corners[usable].astype(np.float32)
        self.classes = annotations.object_classes[self._places].astype(np.int64)
        self.crowd = annotations.crowd[self._places]
        self.image_of_object = annotations.object_images[self._places].astype(np.int64)
        self._first = np.searchsorted(self.image_of_object, np.arange(len(self.image_ids) + 1))

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
        place = int(self._places[object_index])
        polygons = self._annotations.polygons(place)
        if polygons:
            return [part.astype(np.float32).reshape(-1, 2) for part in enclosing(polygons)]
        segmentation = self._annotations.segmentation(place)
        height, width = segmentation["size"]
        counts = segmentation["counts"]
        if isinstance(counts, list):
            return RunLengths((height, width), coco_mask.frPyObjects(segmentation, height, width)["counts"])
        return RunLengths((height, width), counts.encode())

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


def class_frequencies(dataset: DetectionDataset, images: Sequence[int] | np.ndarray) -> np.ndarray:
    """Share of ``images`` that contain each class (crowds not counted): float64 (C,)."""
    chosen = np.zeros(len(dataset), dtype=bool)
    chosen[images] = True
    relevant = chosen[dataset.image_of_object] & ~dataset.crowd
    pairs = np.unique(dataset.image_of_object[relevant] * dataset.num_classes + dataset.classes[relevant])
    return np.bincount(pairs % dataset.num_classes, minlength=dataset.num_classes) / max(len(images), 1)

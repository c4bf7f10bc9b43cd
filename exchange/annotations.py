"""Annotation files in LVIS or COCO format, checked as they are read."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from exchange import files
from exchange.columns import AREA, BOX, FREQUENCY, ID, IDS, TEXT, TEXTS, Records, whole
from exchange.errors import UserError
from exchange.segmentations import MAX_PIXELS, BadSegmentation, check_segmentations, in_reach

_Ints = npt.NDArray[np.int64]
_CATEGORY_ID = whole(2**31 - 1)  # a pool's index has 32 bits for it
_FLAG = whole(1)
_SIDE = whole(MAX_PIXELS, low=1)


def frequency(image_count: int) -> str:
    """LVIS's group of a category by its number of training images: r (≤ 10), c (≤ 100) or f."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


@dataclass(frozen=True)
class AnnotationFile:
    """The content of an annotation file, as :func:`read_annotations` checks it; ``categories`` are sorted by id."""

    path: str
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: list[dict[str, Any]]

    @cached_property
    def category_ids(self) -> npt.NDArray[np.int64]:
        """Sorted category ids, (C,): the class index of a category is its place here."""
        return np.array([category["id"] for category in self.categories], dtype=np.int64)

    @cached_property
    def category_names(self) -> dict[int, str]:
        """Name of each category id."""
        return {category["id"]: category["name"] for category in self.categories}

    def file_names(self) -> dict[int, str]:
        """Name of each image below the data set's image folder, by id, in the order of ``images``.

        LVIS v1 has no ``file_name``; its place is the end of ``coco_url`` (``train2017/000000000009.jpg``). Raises
        UserError for an image without either.
        """
        return {image["id"]: self._file_name(image) for image in self.images}

    def _file_name(self, image: dict[str, Any]) -> str:
        if "file_name" in image:
            return str(image["file_name"])
        if "coco_url" in image:
            return "/".join(PurePosixPath(image["coco_url"]).parts[-2:])
        raise UserError(f"{self.path}: image {image['id']} has no 'file_name': add it")

    def instance_counts(self) -> npt.NDArray[np.int64]:
        """Number of annotated instances of each class, (C,)."""
        ids = np.fromiter((a["category_id"] for a in self.annotations), np.int64, len(self.annotations))
        return np.bincount(np.searchsorted(self.category_ids, ids), minlength=len(self.categories))

    def image_counts(self) -> npt.NDArray[np.int64]:
        """Number of images with at least one instance of each class, (C,)."""
        pairs = {(a["image_id"], a["category_id"]) for a in self.annotations}
        ids = np.fromiter((category for _, category in pairs), np.int64, len(pairs))
        return np.bincount(np.searchsorted(self.category_ids, ids), minlength=len(self.categories))


def read_annotations(path: str) -> AnnotationFile:
    """Reads an LVIS or COCO file.

    What the product reads of it is checked here, once for everybody: types and ranges of the known fields (a field
    that not every reader needs may be absent), that boxes and polygons are near their image and that run lengths add
    up to it, so that nothing later asks for memory or reads where it must not.

    Raises UserError when the file is missing or not in that format; the sentence names the record.
    """
    content = files.read_json(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path} is not an LVIS or COCO annotation file: it has no list {part!r}")
    categories = Records(path, "categories", content["categories"])
    images = Records(path, "images", content["images"])
    annotations = Records(path, "annotations", content["annotations"])
    category_ids, image_ids = categories.ids(_CATEGORY_ID), images.ids(ID)
    for name in ("name", "freebase_id", "def"):
        categories.check(name, TEXT, required=name == "name")
    categories.check("frequency", FREQUENCY)
    categories.check("synonyms", TEXTS)
    for name in ("file_name", "coco_url"):
        images.check(name, TEXT)
    for name in ("neg_category_ids", "pos_category_ids", "not_exhaustive_category_ids"):
        images.check(name, IDS)
    _check_objects(annotations, category_ids, image_ids, _sizes(images))
    return AnnotationFile(
        path,
        images.records,
        annotations.records,
        sorted(categories.records, key=lambda record: int(record["id"])),
    )


def _check_objects(annotations: Records, category_ids: _Ints, image_ids: _Ints, sizes: _Ints) -> None:
    """Raises UserError for a bad annotation; ``sizes``: int64 (images, 2), height and width."""
    annotations.check("id", ID)
    annotations.check("area", AREA)
    for name in ("iscrowd", "difficult"):
        annotations.check(name, _FLAG)
    annotations.refer("category_id", category_ids, "categories")
    sizes = sizes[annotations.refer("image_id", image_ids, "images")]
    boxes = annotations.check("bbox", BOX)
    with_box = [index for index, record in enumerate(annotations.records) if "bbox" in record]
    good = (boxes[:, 2:] >= 0).all(axis=1)
    good &= in_reach(boxes[:, :2], boxes[:, :2] + boxes[:, 2:], sizes[with_box])
    if not good.all():
        raise annotations.error(
            with_box[int(good.argmin())],
            "has a 'bbox' with a negative side, or further outside of its image than that is large",
        )
    segmented = ((i, r["segmentation"]) for i, r in enumerate(annotations.records) if "segmentation" in r)
    try:
        check_segmentations(segmented, sizes)
    except BadSegmentation as error:
        raise annotations.error(error.index, f"has a 'segmentation' that {error}") from error


def _sizes(images: Records) -> _Ints:
    """Height and width of each image, int64 (N, 2)."""
    sizes = np.stack([images.check(name, _SIDE, required=True) for name in ("height", "width")], axis=1)
    good = sizes.prod(axis=1) <= MAX_PIXELS
    if not good.all():
        raise images.error(int(good.argmin()), f"has more than {MAX_PIXELS} pixels by its height and width")
    return sizes

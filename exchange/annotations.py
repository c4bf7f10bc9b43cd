"""Annotation files in LVIS or COCO format, checked as they are read."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from exchange import files
from exchange.errors import UserError


def frequency(image_count: int) -> str:
    """LVIS's group of a category by its number of training images: r (≤ 10), c (≤ 100) or f."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


@dataclass(frozen=True)
class AnnotationFile:
    """The content of an annotation file; ``categories`` are sorted by id."""

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

    Raises UserError when the file is missing, not in that format, repeats an id, or has an annotation whose
    category or image is not listed.
    """
    content = files.read_json(path)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path} is not an LVIS or COCO annotation file: it has no list {part!r}")
    _check_fields(path, content["categories"], "categories", {"id": int, "name": str})
    _check_fields(path, content["images"], "images", {"id": int, "height": int, "width": int})
    _check_fields(path, content["annotations"], "annotations", {"image_id": int, "category_id": int})
    categories = sorted(content["categories"], key=lambda category: int(category["id"]))
    for part, records in (("images", content["images"]), ("categories", categories)):
        if len({record["id"] for record in records}) != len(records):
            raise UserError(f"{path} lists an id twice in {part!r}: ids must be unique")
    for field, part in (("category_id", "categories"), ("image_id", "images")):
        known = {record["id"] for record in content[part]}
        for annotation in content["annotations"]:
            if annotation[field] not in known:
                raise UserError(
                    f"{path}: annotation {annotation.get('id')} has {field} {annotation[field]}, which "
                    f"is not in {part!r}: add it there or remove the annotation"
                )
    return AnnotationFile(path, content["images"], content["annotations"], categories)


def _check_fields(path: str, records: list[Any], part: str, fields: dict[str, type]) -> None:
    for index, record in enumerate(records):
        for name, kind in fields.items():
            if not isinstance(record, dict) or not isinstance(record.get(name), kind):
                raise UserError(
                    f"{path}: record {index} of {part!r} lacks a valid {name!r} ({kind.__name__})"
                )

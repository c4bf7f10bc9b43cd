"""Annotation files in LVIS or COCO format, checked when they are read first and mapped from then on."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from exchange.annotation_reader import FORMAT, ID_LISTS, SCHEMA, Lists, read_into, write_arrays
from exchange.arrays import Arrays, ArrayWriter, made_in_memory, made_once
from exchange.errors import UserError
from exchange.segmentations import COMPRESSED, NONE, POLYGONS

_Ints = npt.NDArray[np.int64]


def frequency(image_count: int) -> str:
    """LVIS's group of a category by its number of training images: r (≤ 10), c (≤ 100) or f."""
    return "r" if image_count <= 10 else "c" if image_count <= 100 else "f"


@dataclass(frozen=True)
class AnnotationFile:
    """An annotation file, as :func:`read_annotations` checks it: N images, M annotations and C categories.

    ``arrays``: those of :data:`~exchange.annotation_reader.SCHEMA`, to be read only. ``num_extra``: so many of the
    categories, the last ones, are not the file's own.
    """

    path: str
    arrays: Arrays
    num_extra: int = 0

    @classmethod
    def of_records(cls, path: str, **parts: Sequence[Mapping[str, Any]]) -> "AnnotationFile":
        """What a file with these lists ``images``, ``annotations`` and ``categories`` would be; ``path`` is for
        messages. Raises UserError as :func:`read_annotations`."""
        return cls(path, made_in_memory(SCHEMA, partial(write_arrays, path, parts)))

    def with_extra_categories(self, path: str, records: Sequence[Mapping[str, Any]]) -> "AnnotationFile":
        """The same with more categories, which nothing in it shows: checked ``records`` of the file ``path``, sorted by
        id, whose ids are above those of the file's own."""
        categories = json.dumps([*self.categories, *records]).encode()
        arrays = {**self.arrays, "categories": np.frombuffer(categories, dtype=np.uint8)}
        return AnnotationFile(f"{self.path} + {path}", arrays, len(records))

    @cached_property
    def categories(self) -> list[dict[str, Any]]:
        """The records of the categories, sorted by id: the class index of a category is its place here."""
        records: list[dict[str, Any]] = json.loads(self.arrays["categories"].tobytes())
        return records

    @cached_property
    def category_ids(self) -> _Ints:
        """Sorted category ids, (C,)."""
        return np.array([category["id"] for category in self.categories], dtype=np.int64)

    @cached_property
    def category_names(self) -> dict[int, str]:
        """Name of each category id."""
        return {category["id"]: category["name"] for category in self.categories}

    @property
    def image_ids(self) -> _Ints:
        """Id of each image, (N,)."""
        return self.arrays["image_ids"]

    @property
    def image_sizes(self) -> npt.NDArray[np.int32]:
        """Height and width of each image, (N, 2)."""
        return self.arrays["image_sizes"]

    @property
    def object_images(self) -> npt.NDArray[np.int32]:
        """Place among the images of each annotation's image, (M,)."""
        return self.arrays["object_images"]

    @property
    def object_classes(self) -> npt.NDArray[np.int32]:
        """Class index of each annotation, (M,)."""
        return self.arrays["object_classes"]

    def file_names(self) -> list[str]:
        """Name of each image below the data set's image folder. Raises UserError for an image without."""
        ends = self.arrays["image_names_ends"]
        nameless = np.diff(ends, prepend=0) == 0
        if nameless.any():
            raise UserError(
                f"{self.path}: image {self.image_ids[nameless.argmax()]} has no 'file_name': add it"
            )
        text, bounds = self.arrays["image_names"].tobytes(), [0, *ends.tolist()]
        return [text[start:end].decode() for start, end in pairwise(bounds)]

    def id_lists(self, name: str) -> list[list[int]]:
        """For each image the category ids in its field ``name``, such as ``neg_category_ids``."""
        values = self.arrays[name].tolist()
        bounds = [0, *self.arrays[f"{name}_ends"].tolist()]
        return [values[start:end] for start, end in pairwise(bounds)]

    def id_pairs(self, name: str) -> tuple[_Ints, _Ints]:
        """The same as pairs of image id and category id, (P,) each."""
        lengths = np.diff(self.arrays[f"{name}_ends"], prepend=0)
        return np.repeat(self.image_ids, lengths), self.arrays[name]

    def image_records(self) -> dict[int, dict[str, Any]]:
        """The records of the images by their ids, without names and unknown fields."""
        columns = zip(
            self.image_ids.tolist(),
            self.image_sizes.tolist(),
            *(self.id_lists(name) for name in ID_LISTS),
            strict=True,
        )
        return {
            image_id: {"id": image_id, "height": height, "width": width}
            | dict(zip(ID_LISTS, lists, strict=True))
            for image_id, (height, width), *lists in columns
        }

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """Box of each annotation, XYWH, NaN where it has none, (M, 4)."""
        return self.arrays["boxes"]

    @property
    def areas(self) -> npt.NDArray[np.float64]:
        """Area of each annotation in pixels, NaN where it has none, (M,)."""
        return self.arrays["areas"]

    @property
    def crowd(self) -> npt.NDArray[np.bool_]:
        """Which annotations have ``iscrowd``, (M,)."""
        return self.arrays["iscrowd"]

    @property
    def difficult(self) -> npt.NDArray[np.bool_]:
        """Which annotations have ``difficult``, (M,)."""
        return self.arrays["difficult"]

    def object_id(self, index: int) -> int | None:
        """Id of an annotation, None where it has none."""
        number = int(self.arrays["object_ids"][index])
        return number if number >= 0 else None

    def enclosing(self) -> npt.NDArray[np.bool_]:
        """Which annotations have run lengths or a polygon of three points or more, (M,)."""
        long = np.diff(self.arrays["coordinates_ends"], prepend=0) >= 6
        before = np.concatenate([[0], np.cumsum(long)])[np.concatenate([[0], self.arrays["polygons_ends"]])]
        enclosing: npt.NDArray[np.bool_] = np.diff(before) > 0
        return enclosing | (self.arrays["segmentation_kinds"] > POLYGONS)

    def require(self, *fields: str, why: str = "") -> None:
        """Raises UserError that names the first annotation without one of ``fields`` (``bbox``, ``area``,
        ``segmentation``); ``why`` stands after the field."""
        lacking = {
            "bbox": np.isnan(self.boxes[:, 0]),
            "area": np.isnan(self.areas),
            "segmentation": self.arrays["segmentation_kinds"] == NONE,
        }
        table = np.stack([lacking[field] for field in fields])
        if table.any():
            index = int(table.any(axis=0).argmax())
            raise UserError(
                f"{self.path}: annotation {self.object_id(index)} has no "
                f"{fields[int(table[:, index].argmax())]!r}{why}: add it"
            )

    def segmentation(self, index: int) -> Any:
        """The segmentation of an annotation as in the file: a list of polygons, or run lengths with their size, which
        are text or a list; None where it has none."""
        kind = self.arrays["segmentation_kinds"][index]
        if kind == NONE:
            return None
        if kind == POLYGONS:
            return [polygon.tolist() for polygon in self.polygons(index)]
        size = self.image_sizes[self.object_images[index]].tolist()
        if kind == COMPRESSED:
            return {"size": size, "counts": self._list("text", index).tobytes().decode("ascii")}
        return {"size": size, "counts": self._list("runs", index).tolist()}

    def polygons(self, index: int) -> list[npt.NDArray[np.float64]]:
        """The polygons of an annotation, x and y in turn, as views of the shared array."""
        first, last = _bounds(self.arrays["polygons_ends"], index)
        return [self._list("coordinates", polygon) for polygon in range(first, last)]

    def _list(self, name: str, index: int) -> npt.NDArray[Any]:
        first, last = _bounds(self.arrays[f"{name}_ends"], index)
        return self.arrays[name][first:last]

    def instance_counts(self) -> _Ints:
        """Number of annotated instances of each class, (C,)."""
        return np.bincount(self.object_classes, minlength=len(self.categories))

    def image_counts(self) -> _Ints:
        """Number of images with at least one instance of each class, (C,)."""
        number = len(self.categories)
        pairs = np.unique(self.object_images.astype(np.int64) * number + self.object_classes)
        return np.bincount(pairs % number, minlength=number)


def _bounds(ends: npt.NDArray[np.int64], index: int) -> tuple[int, int]:
    return int(ends[index - 1]) if index else 0, int(ends[index])


def read_annotations(path: str) -> AnnotationFile:
    """Reads an LVIS or COCO file.

    What the product reads of it is checked, once for everybody: types and ranges of the known fields (a field that not
    every reader needs may be absent), that boxes and polygons are near their image and that run lengths add up to it,
    so that nothing later asks for memory or reads where it must not. A large file is read by the first process that
    asks; all others, then and later, map what that wrote to the cache (:mod:`exchange.arrays`).

    Raises UserError when the file is missing or not in that format; the sentence names the record.
    """
    return AnnotationFile(path, made_once([path], FORMAT, SCHEMA, partial(read_into, path), _go_together))


def join(files: Sequence[tuple[AnnotationFile, str]]) -> AnnotationFile:
    """Several files of the same categories as one: images and annotations are numbered anew, as ids may collide, and
    the images' names begin with the folder that stands beside each file."""
    paths = [file.path for file, _ in files]
    folders = [folder.rstrip("/") for _, folder in files]
    kind = f"{FORMAT} of {folders}"
    arrays = made_once(paths, kind, SCHEMA, partial(_write_joined, files), _go_together)
    return AnnotationFile(" + ".join(paths), arrays)


# Names below are those of SCHEMA.
_NUMBERED = {"image_ids", "object_ids", "object_images", "image_names", "categories"}
_LISTS = {name.removesuffix("_ends") for name in SCHEMA if name.endswith("_ends")}


def _write_joined(files: Sequence[tuple[AnnotationFile, str]], writer: ArrayWriter) -> None:
    lists, images, objects = Lists(writer), 0, 0
    writer.append("categories", files[0][0].arrays["categories"])
    for file, folder in files:
        arrays = file.arrays
        names = [f"{folder.rstrip('/')}/{name}".encode() for name in file.file_names()]
        lists.append("image_names", [len(n) for n in names], np.frombuffer(b"".join(names), dtype=np.uint8))
        writer.append("image_ids", np.arange(len(file.image_ids)) + images + 1)
        writer.append("object_images", file.object_images + images)
        writer.append("object_ids", np.arange(len(file.object_images)) + objects + 1)
        images, objects = images + len(file.image_ids), objects + len(file.object_images)
        for name in _LISTS - _NUMBERED:
            lists.append_lengths(name, np.diff(arrays[f"{name}_ends"], prepend=0))
        for name in set(SCHEMA) - _NUMBERED - {f"{name}_ends" for name in _LISTS}:
            writer.append(name, arrays[name])


_OF_IMAGES = {"image_sizes", "image_names_ends", *(f"{name}_ends" for name in ID_LISTS)}
_OF_OBJECTS = {"object_images", "object_classes", "boxes", "areas", "iscrowd", "difficult"}
_OF_OBJECTS |= {"segmentation_kinds", "polygons_ends", "text_ends", "runs_ends"}


def _go_together(arrays: Arrays) -> bool:
    """Whether nothing in the arrays points to where nothing is."""
    images, objects = len(arrays["image_ids"]), len(arrays["object_ids"])
    try:
        classes = len(json.loads(arrays["categories"].tobytes()))
    except ValueError:
        return False
    good = all(len(arrays[name]) == images for name in _OF_IMAGES)
    good &= all(len(arrays[name]) == objects for name in _OF_OBJECTS)
    for name in _LISTS:
        ends = arrays[f"{name}_ends"]
        total = len(arrays["coordinates_ends" if name == "polygons" else name])
        good &= bool((np.diff(ends, prepend=0) >= 0).all()) and (int(ends[-1]) if len(ends) else 0) == total
    for name, limit in (("object_images", images), ("object_classes", classes)):
        good &= bool(((arrays[name] >= 0) & (arrays[name] < limit)).all())
    return good

"""From the text of an annotation file in LVIS or COCO format to checked arrays, some thousand records at a time.

LVIS's training annotations are a gigabyte of text and seven gigabytes of Python objects, which never exist at once.
"""

import contextlib
import json
import mmap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np

from exchange import files
from exchange.arrays import Array, ArrayWriter, Schema
from exchange.columns import AREA, BOX, FREQUENCY, ID, IDS, TEXT, TEXTS, Ids, Records, whole
from exchange.errors import UserError
from exchange.segmentations import MAX_PIXELS, BadSegmentation, gather, in_reach

FORMAT = "annotations 1"  # of the arrays below
# ``_ends`` say where the values of each row end in the array without. What an annotation lacks is NaN, or an id of -1.
# ``object_images`` and ``object_classes`` are places among the images and among the categories by their ids.
SCHEMA: Schema = {
    "categories": ("u1", ()),  # JSON
    "image_ids": ("<i8", ()),
    "image_sizes": ("<i4", (2,)),  # height, width
    "image_names_ends": ("<i8", ()),
    "image_names": ("u1", ()),
    **{
        f"{name}_category_ids{suffix}": ("<i8", ())
        for name in ("neg", "pos", "not_exhaustive")
        for suffix in ("_ends", "")
    },
    "object_ids": ("<i8", ()),
    "object_images": ("<i4", ()),
    "object_classes": ("<i4", ()),
    "boxes": ("<f8", (4,)),  # XYWH
    "areas": ("<f8", ()),
    "iscrowd": ("?", ()),
    "difficult": ("?", ()),
    "segmentation_kinds": ("u1", ()),
    "polygons_ends": ("<i8", ()),  # among the polygons
    "coordinates_ends": ("<i8", ()),  # of each polygon
    "coordinates": ("<f8", ()),
    "text_ends": ("<i8", ()),
    "text": ("u1", ()),
    "runs_ends": ("<i8", ()),
    "runs": ("<i8", ()),
}
ID_LISTS = ("neg_category_ids", "pos_category_ids", "not_exhaustive_category_ids")
_PARTS = ("images", "annotations", "categories")
_PIECE = 1 << 20  # characters of text that become Python objects at once
_RECORD = 256  # characters that a decoded record stands for
_CATEGORY_ID = whole(2**31 - 1)  # a pool's index has 32 bits for it
_FLAG = whole(1)
_SIDE = whole(MAX_PIXELS, low=1)


class _File(msgspec.Struct):
    images: list[msgspec.Raw]
    annotations: list[msgspec.Raw]
    categories: list[msgspec.Raw]


def read_into(path: str, writer: ArrayWriter) -> None:
    """Writes the arrays of ``SCHEMA`` for the annotation file ``path``.

    Raises UserError when the file is missing or not in that format; the sentence names the record.
    """
    write_arrays(path, _parts(path, files.content(path)), writer)


def write_arrays(path: str, parts: Mapping[str, Sequence[Any]], writer: ArrayWriter) -> None:
    """The same for the lists ``images``, ``annotations`` and ``categories``, whose records are JSON objects, decoded
    or as text; ``path`` is for messages."""
    lists = Lists(writer)
    category_ids = _write_categories(path, parts["categories"], writer)
    image_ids, sizes = [], [np.empty((0, 2), dtype=np.int64)]
    for records in _pieces(path, "images", parts["images"]):
        image_ids.append(records.check("id", ID, required=True))
        sizes.append(_write_image_fields(records, lists))
    images, size_of = Ids(path, "images", image_ids), np.concatenate(sizes)
    writer.append("image_ids", images.ids)
    writer.append("image_sizes", size_of)
    for records in _pieces(path, "annotations", parts["annotations"]):
        _write_objects(records, category_ids, images, size_of, writer, lists)


class Lists:
    """Writes lists of the schema: where each ends, and their values."""

    def __init__(self, writer: ArrayWriter) -> None:
        self._writer = writer
        self._written: dict[str, int] = {}

    def append_lengths(self, name: str, lengths: Sequence[int] | Array) -> None:
        """``lengths``: of the lists to add."""
        ends = self._written.get(name, 0) + np.cumsum(lengths, dtype=np.int64)
        if len(ends):
            self._written[name] = int(ends[-1])
        self._writer.append(f"{name}_ends", ends)

    def append(self, name: str, lengths: Sequence[int] | Array, values: Array) -> None:
        """``values``: those of all these lists."""
        self.append_lengths(name, lengths)
        self._writer.append(name, values)


def _parts(path: str, text: bytes | mmap.mmap) -> Mapping[str, Sequence[Any]]:
    """The records of each list: as text, or decoded where msgspec does not take the file."""
    with contextlib.suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        file = msgspec.json.decode(text, type=_File)
        return {part: getattr(file, part) for part in _PARTS}
    content = files.parse_json(path, text[:])
    for part in _PARTS:
        if not isinstance(content, dict) or not isinstance(content.get(part), list):
            raise UserError(f"{path} is not an LVIS or COCO annotation file: it has no list {part!r}")
    return {part: content[part] for part in _PARTS}


def _pieces(path: str, part: str, records: Sequence[Any]) -> Iterator[Records]:
    start = size = 0
    for index, record in enumerate(records, start=1):
        size += len(memoryview(record)) if isinstance(record, msgspec.Raw) else _RECORD
        if size > _PIECE or index == len(records):
            yield Records(path, part, _decoded(path, records[start:index]), start)
            start, size = index, 0


def _decoded(path: str, records: Sequence[Any]) -> list[Any]:
    if not isinstance(records[0], msgspec.Raw):
        return list(records)
    text = b"[" + b",".join(records) + b"]"
    try:
        decoded: list[Any] = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):  # half a surrogate, a number beyond float64
        decoded = files.parse_json(path, text)
    return decoded


def _write_categories(path: str, texts: Sequence[Any], writer: ArrayWriter) -> Ids:
    records = Records(path, "categories", _decoded(path, texts) if texts else [])
    ids = records.check("id", _CATEGORY_ID, required=True)
    for name in ("name", "freebase_id", "def"):
        records.check(name, TEXT, required=name == "name")
    records.check("frequency", FREQUENCY)
    records.check("synonyms", TEXTS)
    by_id = sorted(records.records, key=lambda record: int(record["id"]))
    writer.append("categories", np.frombuffer(json.dumps(by_id).encode(), dtype=np.uint8))
    return Ids(path, "categories", [np.sort(ids)])


def _write_image_fields(records: Records, lists: Lists) -> Array:
    """All but the ids and the sizes, int64 (N, 2) of height and width, which are returned."""
    for name in ("file_name", "coco_url"):
        records.check(name, TEXT)
    names = [_file_name(record).encode() for record in records.records]
    lists.append("image_names", [len(name) for name in names], np.frombuffer(b"".join(names), dtype=np.uint8))
    for name in ID_LISTS:
        ids = records.check(name, IDS)
        lists.append(name, [len(record.get(name, ())) for record in records.records], ids)
    sizes = np.stack([records.check(name, _SIDE, required=True) for name in ("height", "width")], axis=1)
    good = sizes.prod(axis=1) <= MAX_PIXELS
    if not good.all():
        raise records.error(int(good.argmin()), f"has more than {MAX_PIXELS} pixels by its height and width")
    return sizes


def _file_name(image: dict[str, Any]) -> str:
    """LVIS v1 has no ``file_name``; its place is the end of ``coco_url`` (``train2017/000000000009.jpg``)."""
    if "file_name" in image:
        return str(image["file_name"])
    return "/".join(PurePosixPath(image.get("coco_url", "")).parts[-2:])


def _write_objects(
    records: Records, category_ids: Ids, images: Ids, size_of: Array, writer: ArrayWriter, lists: Lists
) -> None:
    writer.append("object_ids", records.filled("id", ID, -1))
    writer.append("areas", records.filled("area", AREA, np.nan))
    for name in ("iscrowd", "difficult"):
        writer.append(name, records.filled(name, _FLAG, 0))
    writer.append("object_classes", records.refer("category_id", category_ids))
    image_of = records.refer("image_id", images)
    writer.append("object_images", image_of)
    sizes = size_of[image_of]
    boxes = records.filled("bbox", BOX, np.nan)
    good = (boxes[:, 2:] >= 0).all(axis=1) & in_reach(boxes[:, :2], boxes[:, :2] + boxes[:, 2:], sizes)
    good |= np.isnan(boxes[:, 0])
    if not good.all():
        raise records.error(
            int(good.argmin()),
            "has a 'bbox' with a negative side, or further outside of its image than that is large",
        )
    writer.append("boxes", boxes)
    segmented = ((i, r["segmentation"]) for i, r in enumerate(records.records) if "segmentation" in r)
    try:
        found = gather(segmented, sizes)
    except BadSegmentation as error:
        raise records.error(error.index, f"has a 'segmentation' that {error}") from error
    writer.append("segmentation_kinds", found.kinds)
    lists.append_lengths("polygons", found.polygon_counts)
    lists.append("coordinates", found.polygon_lengths, found.coordinates)
    lists.append("text", found.text_lengths, found.text)
    lists.append("runs", found.run_counts, found.runs)
